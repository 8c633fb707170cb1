import assert from 'node:assert/strict';
import { existsSync, readFileSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import { openConnection } from '../../src/libvirt/opening.ts';
import { program } from '../../src/libvirt/procedures.ts';
import { array, int } from '../../src/libvirt/xdr.ts';
import type { Guest } from '../lab/guest.ts';
import { HeldStarts } from '../lab/held-starts.ts';
import type { NbdServer } from '../lab/storage.ts';
import { waitFor } from '../lab/wait.ts';
import { assertNothingLost, goesOn } from './copies-hold.ts';
import { events, patienceMs, setScene, sourceOf, status, waitForLibvirt, waitState } from './scene.ts';

describe("libvirt's hook", function () {
  this.timeout(150_000);
  const scene = setScene();
  let heldStarts: HeldStarts;

  interface Pair {
    guest: Guest;
    primary: NbdServer;
    mirror: NbdServer;
  }

  async function protectedGuest(name: string, options: { start?: boolean; policy?: string } = {}): Promise<Pair> {
    const { start = true, policy = 'available' } = options;
    const primary = await scene.lab.nbd({ name: `${name}-primary`, sizeBytes: 16 << 20 });
    const mirror = await scene.lab.nbd({ name: `${name}-mirror`, sizeBytes: 16 << 20 });
    const image = { format: 'raw' as const, nbd: primary.address };
    const guest = await scene.guest({
      name,
      start,
      cmdline: 'witness.rate=50',
      disks: [{ dev: 'vda', bus: 'virtio', image }],
    });
    await scene.agent.mustCdp('protect', name, '--disk', 'vda', '--mirror', mirror.uri, '--policy', policy);
    return { guest, primary, mirror };
  }

  /** A start or restore by virsh that must be refused; what virsh said. */
  async function refused(...args: string[]): Promise<string> {
    const { code, stderr } = await scene.lab.libvirtd.virsh(...args);
    assert.notEqual(code, 0, `virsh ${args.join(' ')} was not refused`);
    return stderr;
  }

  /** The guest went on where it was: it did not boot again. */
  async function wentOn(guest: Guest): Promise<void> {
    await goesOn(guest, 10);
    assert.equal(guest.witness.boots, 1);
    assert.deepEqual(guest.witness.errors, []);
  }

  before(async () => {
    const { lab, agent } = scene;
    await agent.installHook();
    heldStarts = await HeldStarts.install(lab.libvirtd);
  });

  it('of somebody else that does not end delays no failover of another domain; the XML follows when libvirt can', async () => {
    const { lab, agent } = scene;
    await protectedGuest('held', { start: false });
    const { guest, primary, mirror } = await protectedGuest('web1');
    await waitState(agent, 'web1', 'protected');
    await goesOn(guest, 10);

    const order: string[] = [];
    const starting = lab.libvirtd.virsh('start', 'held').then(() => order.push('the held start has ended'));
    await heldStarts.waitHeld(patienceMs);
    // With one client in virConnectListDomains, which waits for the held domain, libvirt defines no domain any more.
    const listDomains = {
      name: 'connectListDomains',
      program: program.remote,
      number: 37,
      args: int,
      result: array(int, 100),
    };
    const connection = await openConnection({ socketPath: lab.libvirtd.socket });
    const listing = connection.call(listDomains, 100, patienceMs).then(() => order.push('the list has ended'));
    const defining = lab.libvirtd
      .virsh('define', join(lab.root, 'web1.xml'))
      .then(() => order.push('a define has ended'));
    try {
      primary.failAll();
      await waitState(agent, 'web1', 'failed-over');
      await goesOn(guest, 10);
      order.push('the guest goes on');
      assert.equal(await sourceOf(guest, 'next start'), primary.uri);
    } finally {
      await heldStarts.letGo();
      await Promise.all([starting, listing, defining]);
      await connection.close();
    }
    assert.equal(order[0], 'the guest goes on');
    await waitFor(
      'the XML to name the mirror',
      async () => (await sourceOf(guest, 'next start')) === mirror.uri,
      patienceMs,
    );

    await lab.virsh('managedsave', 'web1');
    assert.ok(
      (await lab.virsh('managedsave-dumpxml', 'web1')).includes('web1-primary'),
      'the saved XML is the live one',
    );
    await lab.virsh('start', 'web1');
    await wentOn(guest);
    assert.equal(await sourceOf(guest, 'live'), mirror.uri);
    assert.equal((await waitState(agent, 'web1', 'failed-over')).runningOn, 'mirror');

    process.kill(agent.pid, 'SIGSTOP');
    try {
      await lab.libvirtd.restart();
      await wentOn(guest);
    } finally {
      process.kill(agent.pid, 'SIGCONT');
    }
    await waitForLibvirt(agent);
    await guest.shutdown();
    await assertNothingLost(guest, [mirror.file]);
  });

  it('gives a restored domain the copies that are current; an older state of it is refused', async () => {
    const { lab, agent } = scene;
    const { guest, primary, mirror } = await protectedGuest('web2');
    await waitState(agent, 'web2', 'protected');
    await goesOn(guest, 10);
    const [first, second] = [lab.path('first.save'), lab.path('second.save')];

    const syncs = (await events(agent, 'web2', 'resync-finished')).length;
    await lab.virsh('save', 'web2', first);
    await waitState(agent, 'web2', 'stopped');
    await lab.virsh('restore', first);
    await wentOn(guest);
    const again = await waitState(agent, 'web2', 'protected');
    assert.deepEqual([again.primary.current, again.mirror.current], [true, true]);
    assert.ok((await events(agent, 'web2', 'resync-finished')).length > syncs, 'it was called identical unseen');

    await lab.virsh('managedsave', 'web2');
    await waitState(agent, 'web2', 'stopped');
    await primary.kill();
    await agent.mustCdp('start', 'web2');
    await wentOn(guest);
    assert.equal(await sourceOf(guest, 'live'), mirror.uri);
    assert.equal((await waitState(agent, 'web2', 'failed-over')).primary.current, false);

    await lab.virsh('save', 'web2', second);
    await waitState(agent, 'web2', 'stopped');
    for (const agentIsUp of [true, false]) {
      if (!agentIsUp) await agent.kill('SIGKILL');
      assert.match(await refused('restore', first), /saved state is older than its disk vda.*--force-boot web2/);
    }
    await lab.virsh('restore', second);
    await wentOn(guest);
    assert.equal(await sourceOf(guest, 'live'), mirror.uri);
    await agent.start();
    assert.equal((await waitState(agent, 'web2', 'failed-over')).runningOn, 'mirror');
    await guest.shutdown();
    await assertNothingLost(guest, [mirror.file]);
  });

  it('refuses a stale copy by its other names, and a strict start without the agent or the mirror', async () => {
    const { lab, agent } = scene;
    const { guest, primary, mirror } = await protectedGuest('web3', { start: false, policy: 'strict' });
    assert.equal((await status(agent, 'web3')).disks[0]?.mirror.current, false);

    // The mirror has never been synced: a stale copy, and here it is named by a link to its server's socket.
    assert.ok('socket' in mirror.address);
    const link = join(lab.root, 'link');
    symlinkSync(mirror.address.socket, link);
    await scene.guest({
      name: 'thief',
      start: false,
      disks: [{ dev: 'vda', bus: 'virtio', image: { format: 'raw', nbd: { ...mirror.address, socket: link } } }],
    });
    const names = join(agent.storeDir, 'real-names.json');
    await waitFor(
      'the link to be followed',
      () => existsSync(names) && readFileSync(names, 'utf8').includes(link),
      patienceMs,
    );
    for (const agentIsUp of [true, false]) {
      if (!agentIsUp) await agent.kill('SIGKILL');
      assert.match(await refused('start', 'thief'), /stale copy of web3's vda.*virt-cdp start web3/);
    }
    assert.match(await refused('start', 'web3'), /policy is strict, and the agent does not answer/);
    await agent.start();
    await waitForLibvirt(agent);

    await mirror.kill();
    const attempt = await agent.cdp('start', 'web3');
    assert.notEqual(attempt.code, 0, attempt.stdout);
    assert.match(await refused('start', 'web3'), /policy is strict, and the mirror of vda, .* last seen out of reach/);
    assert.equal(guest.witness.boots, 0);
    await primary.kill();
  });
});
