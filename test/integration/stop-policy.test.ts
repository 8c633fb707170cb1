import assert from 'node:assert/strict';
import { existsSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { AgentClient } from '../../src/control/client.ts';
import { CdpError } from '../../src/errors.ts';
import type { Guest } from '../lab/guest.ts';
import { must } from '../lab/run.ts';
import type { NbdServer } from '../lab/storage.ts';
import { waitFor } from '../lab/wait.ts';
import { endWell, goesOn } from './copies-hold.ts';
import { events, patienceMs, roots, setScene, status, waitForLibvirt, waitState } from './scene.ts';

const sizeBytes = 16 << 20;

describe('a domain that runs without the stop policy', function () {
  this.timeout(150_000);
  const scene = setScene();

  interface Pair {
    guest: Guest;
    primary: NbdServer;
    mirror: NbdServer;
  }

  async function guestWithoutPolicy(name: string): Promise<Pair> {
    const primary = await scene.lab.nbd({ name: `${name}-primary`, sizeBytes });
    const mirror = await scene.lab.nbd({ name: `${name}-mirror`, sizeBytes });
    const image = { format: 'raw' as const, nbd: primary.address };
    const disk = { dev: 'vda', bus: 'virtio' as const, image, stopPolicy: false };
    const guest = await scene.guest({ name, cmdline: 'witness.rate=50', disks: [disk] });
    await goesOn(guest, 10);
    return { guest, primary, mirror };
  }

  function saves(): string[] {
    return readdirSync(saveFolder()).map((file) => join(saveFolder(), file));
  }

  function saveFolder(): string {
    return join(scene.lab.libvirtd.root, 'lib/qemu/save');
  }

  /** The same boot of the guest goes on, on both copies, and none of it is left in libvirt's folder. */
  async function assertProtectedWithoutReboot(guest: Guest): Promise<void> {
    await waitState(scene.agent, guest.name, 'protected');
    assert.equal((await status(scene.agent, guest.name)).guarantee, 'strict-ack');
    assert.deepEqual(await roots(guest), ['cdp-vda']);
    await goesOn(guest, 20);
    assert.equal(guest.witness.boots, 1);
    assert.deepEqual(guest.witness.errors, []);
    assert.deepEqual(saves(), []);
  }

  /** libvirt makes the file when it has paused the guest, and a busy machine may not be asked for its state in time. */
  function isBeingSaved({ name }: Guest): boolean {
    return existsSync(join(saveFolder(), `${name}.save`));
  }

  /** libvirt refuses to restore a domain while this answers yes of its XML. */
  function refuseRestore(test: string): void {
    const folder = join(scene.lab.libvirtd.hooksDir, 'qemu.d');
    writeFileSync(
      join(folder, '90-refuse'),
      `#!/bin/sh\n[ "$2" = restore ] || exit 0\n${test} || exit 0\necho 'not today' >&2\nexit 1\n`,
      { mode: 0o755 },
    );
  }

  function allowRestore(): void {
    rmSync(join(scene.lab.libvirtd.hooksDir, 'qemu.d/90-refuse'), { force: true });
  }

  before(async () => {
    const { lab, agent } = scene;
    await agent.installHook();
    lab.libvirtd.reload();
  });

  it('is promised less, until save-restore gives it the policy without a reboot', async () => {
    const { agent } = scene;
    const { guest, primary, mirror } = await guestWithoutPolicy('web1');
    const told = await agent.cdp('protect', 'web1', '--disk', 'vda', '--mirror', mirror.uri);
    assert.equal(told.code, 0, told.stderr);
    const way = 'virt-cdp protect web1 --disk vda --stop-policy-by save-restore';
    const relaxed = await waitState(agent, 'web1', 'protected');
    for (const text of [told.stderr, relaxed.reason ?? '']) {
      assert.ok(text.includes('virsh shutdown web1, then virsh start web1'), text);
      assert.ok(text.includes(way), text);
    }
    assert.equal((await status(agent, 'web1')).guarantee, 'relaxed');
    assert.match(await agent.mustCdp('status', 'web1'), /guarantee relaxed/);
    await goesOn(guest, 10);

    const client = new AgentClient({ socketPath: agent.socket });
    const asked = { disk: 'vda', stopPolicyBy: 'save-restore' as const };
    await assert.rejects(client.act('web1', 'protect', asked), (error) => {
      return error instanceof CdpError && error.code === 'pause-not-agreed' && /about \d+ s/.test(error.message);
    });
    assert.deepEqual(await events(agent, 'web1', 'saved'), []);

    const [first, second] = await Promise.allSettled([
      agent.cdp(...way.split(' ').slice(1)),
      waitFor('web1 to be saved', () => isBeingSaved(guest), patienceMs).then(() =>
        client.act('web1', 'protect', { ...asked, pauseAgreed: true }),
      ),
    ]);
    assert.ok(first.status === 'fulfilled' && first.value.code === 0, JSON.stringify(first));
    assert.match(first.value.stderr, /stands still for about \d+ s/);
    assert.match(first.value.stdout, /stood still for [\d.]+ s, and was not rebooted/);
    assert.ok(
      second.status === 'rejected' && (second.reason as CdpError).code === 'save-under-way',
      JSON.stringify(second),
    );
    await assertProtectedWithoutReboot(guest);
    assert.equal((await events(agent, 'web1', 'restored')).length, 1);
    await endWell(guest, [primary.file, mirror.file]);
  });

  it('is restored as it was if libvirt refuses the change, stays saved if it refuses all, and stays suspended if it was', async () => {
    const { agent, lab } = scene;
    const { guest, primary, mirror } = await guestWithoutPolicy('web2');
    const protect = ['protect', 'web2', '--disk', 'vda', '--mirror', mirror.uri, '--stop-policy-by', 'save-restore'];

    const folder = '/var/lib/libvirt/qemu/save';
    await must(...lab.libvirtd.namespace.command('mount', '-t', 'tmpfs', '-o', 'size=64m', 'save', folder));
    const short = await agent.cdp(...protect);
    await must(...lab.libvirtd.namespace.command('umount', folder));
    assert.equal(short.code, 1);
    assert.match(short.stderr, /the memory of web2 needs \d+ bytes.* has \d+ free/);
    assert.equal((await agent.cdp('status', 'web2')).code, 1, 'nothing was declared');

    refuseRestore(`grep -q "error_policy='stop'"`);
    const asItWas = await agent.cdp(...protect);
    assert.equal(asItWas.code, 1);
    assert.match(asItWas.stderr, /restored as it was, without error_policy='stop': .*not today/);
    await goesOn(guest, 10);
    await waitState(agent, 'web2', 'protected');
    assert.equal((await status(agent, 'web2')).guarantee, 'relaxed');

    refuseRestore('true');
    const stuck = await agent.cdp(...protect);
    assert.equal(stuck.code, 1);
    assert.match(
      stuck.stderr,
      /saved, with all of its memory, but could not be started.*not today[^]*virsh start web2/,
    );
    const stopped = await waitState(agent, 'web2', 'stopped');
    assert.match(stopped.reason ?? '', /virsh start web2/);
    assert.equal((await events(agent, 'web2', 'restore-failed')).length, 1);
    allowRestore();
    await lab.virsh('start', 'web2');
    await goesOn(guest, 10);
    await waitState(agent, 'web2', 'protected');
    assert.equal((await status(agent, 'web2')).guarantee, 'relaxed');

    await guest.suspend();
    await agent.mustCdp(...protect, '--no-wait');
    assert.match(await guest.state(), /^paused/);
    assert.equal((await status(agent, 'web2')).guarantee, 'strict-ack');
    const before = guest.witness.acknowledged();
    await guest.resume();
    await goesOn(guest, 10);
    assert.ok(guest.witness.acknowledged() > before);
    await assertProtectedWithoutReboot(guest);
    await endWell(guest, [primary.file, mirror.file]);
  });

  describe('comes back', () => {
    const protect = (name: string, mirror: NbdServer): string[] => {
      return ['protect', name, '--disk', 'vda', '--mirror', mirror.uri, '--stop-policy-by', 'save-restore'];
    };

    it('when its agent dies while it is saved: by the next agent, which finishes the work', async () => {
      const { agent } = scene;
      for (const name of ['web3', 'web4']) {
        const { guest, primary, mirror } = await guestWithoutPolicy(name);
        const asked = agent.cdp(...protect(name, mirror));
        await waitFor(`${name} to be saved`, () => isBeingSaved(guest), patienceMs);
        await agent.kill('SIGKILL');
        assert.equal((await asked).code, 3);
        if (name === 'web3') {
          await guest.waitState('shut off (saved)', patienceMs);
          assert.deepEqual(
            saves().map((path) => statSync(path).mode & 0o777),
            [0o600],
          );
        }
        await agent.start();
        await waitForLibvirt(agent);
        await assertProtectedWithoutReboot(guest);
        await endWell(guest, [primary.file, mirror.file]);
      }
    });

    it('when its agent dies while it is restored: it does not wait for long, and no memory of former days is left', async () => {
      const { agent } = scene;
      const { guest, primary, mirror } = await guestWithoutPolicy('web6');
      const asked = agent.cdp(...protect('web6', mirror));
      await waitFor('web6 to be saved', () => isBeingSaved(guest), patienceMs);
      // libvirt sets it up again, or it goes on already.
      await waitFor(
        'web6 to be restored',
        async () => /starting up|migrating|^running/.test(await guest.state()),
        patienceMs,
      );
      await agent.kill('SIGKILL');
      await asked;
      await agent.start();
      await waitForLibvirt(agent);
      await assertProtectedWithoutReboot(guest);
      await endWell(guest, [primary.file, mirror.file]);
    });

    it('when libvirtd is killed while it is saved: it goes on as before, and may be saved again', async () => {
      const { agent, lab } = scene;
      const { guest, primary, mirror } = await guestWithoutPolicy('web7');
      const asked = agent.cdp(...protect('web7', mirror));
      await waitFor('web7 to be saved', () => isBeingSaved(guest), patienceMs);
      await lab.libvirtd.restart('SIGKILL');
      assert.equal((await asked).code, 1);
      await waitForLibvirt(agent);
      await goesOn(guest, 10);
      await waitState(agent, 'web7', 'protected');
      assert.equal((await status(agent, 'web7')).guarantee, 'relaxed');
      await agent.mustCdp(...protect('web7', mirror));
      await assertProtectedWithoutReboot(guest);
      await endWell(guest, [primary.file, mirror.file]);
    });
  });

  it('is not saved while another disk runs on its mirror, or if it is transient', async () => {
    const { agent, lab } = scene;
    const disks = await Promise.all(
      ['vda', 'vdb'].map(async (dev) => {
        const primary = await lab.nbd({ name: `web5-${dev}`, sizeBytes });
        const mirror = await lab.nbd({ name: `web5-${dev}-mirror`, sizeBytes });
        return { dev, primary, mirror, stopPolicy: dev === 'vda' };
      }),
    );
    const guest = await scene.guest({
      name: 'web5',
      cmdline: 'witness.rate=50',
      disks: disks.map(({ dev, primary, stopPolicy }) => {
        return { dev, bus: 'virtio', image: { format: 'raw', nbd: primary.address }, stopPolicy };
      }),
    });
    const protect = disks.map(({ dev, mirror }) => ['protect', 'web5', '--disk', dev, '--mirror', mirror.uri]);
    await agent.mustCdp(...(protect[0] ?? []));
    await agent.mustCdp('failover', 'web5', '--disk', 'vda');
    const saveFor = async (): Promise<string> => {
      const { code, stderr } = await agent.cdp(...(protect[1] ?? []), '--stop-policy-by', 'save-restore');
      assert.equal(code, 1, stderr);
      return stderr;
    };
    assert.match(await saveFor(), /vda runs on the mirror\nhint: virt-cdp rebuild web5/);
    await lab.virsh('undefine', 'web5');
    assert.match(await saveFor(), /web5 is transient[^]*virsh define/);
    await goesOn(guest, 20);
    assert.equal(guest.witness.boots, 1);
  });
});
