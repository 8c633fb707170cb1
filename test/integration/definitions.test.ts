import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { declarationToXml } from '../../src/domain/declaration.ts';
import type { DiskStatus } from '../../src/protection/model.ts';
import type { Guest } from '../lab/guest.ts';
import { waitFor } from '../lab/wait.ts';
import { assertIdentical, assertNothingLost, endWell, goesOn } from './copies-hold.ts';
import { events, patienceMs, roots, setScene, sourceOf, status, waitDisk, waitForLibvirt, waitState } from './scene.ts';

describe('a definition', function () {
  this.timeout(150_000);
  const scene = setScene();
  const cmdline = 'witness.blocks=2000 witness.rate=50';

  before(async () => {
    const { lab, agent } = scene;
    await agent.installHook();
    lab.libvirtd.reload();
  });

  /** As in a definition that somebody wrote by hand. */
  function declaring(xml: string, mirror: string): string {
    const image = { source: { kind: 'file' as const, path: mirror }, format: 'raw' as const };
    const declaration = declarationToXml({
      policy: 'available',
      disks: [{ dev: 'vda', mirror: image, rebuild: null }],
    });
    const metadata = `<metadata>${declaration.replace('<protection ', "<protection xmlns='https://virt-cdp.org/xmlns/domain/1' ")}</metadata>`;
    return xml.replace(/<metadata>[\s\S]*<\/metadata>/, '').replace('<memory ', `${metadata}<memory `);
  }

  function written(name: string, xml: string): string {
    const path = join(scene.lab.root, `${name}-written.xml`);
    writeFileSync(path, xml);
    return path;
  }

  async function define(name: string, xml: string): Promise<void> {
    await scene.lab.virsh('define', written(name, xml));
  }

  async function definition(name: string): Promise<string> {
    return scene.lab.virsh('dumpxml', name, '--inactive', '--security-info');
  }

  async function told(domain: string, text: string, dev?: string): Promise<DiskStatus> {
    return waitDisk(scene.agent, domain, `told '${text}'`, ({ reason }) => reason?.includes(text) === true, dev);
  }

  async function boots(guest: Guest, start: () => Promise<unknown>): Promise<void> {
    const boot = guest.witness.boots + 1;
    await start();
    await guest.witness.waitReady(patienceMs, boot);
  }

  const contents = (path: string): string => createHash('sha256').update(readFileSync(path)).digest('hex');

  it('of a transient domain is gone with it; created again with its UUID, the domain goes on by its record', async () => {
    const { agent, lab } = scene;
    const primary = await lab.image('t1.raw');
    const { file: mirror } = await lab.image('t1-mirror.raw');
    const guest = await scene.guest({
      name: 't1',
      start: false,
      cmdline,
      disks: [{ dev: 'vda', bus: 'virtio', image: primary }],
    });
    const onPrimary = declaring(await definition('t1'), mirror);
    await lab.virsh('undefine', 't1');
    const create = async (xml: string): Promise<void> => boots(guest, () => lab.virsh('create', written('t1', xml)));

    for (const times of [1, 2]) {
      await create(onPrimary);
      await waitState(agent, 't1', 'protected');
      assert.equal((await events(agent, 't1', 'declared')).length, 1, `created ${times} times`);
      await goesOn(guest);
      if (times === 2) await agent.mustCdp('failover', 't1');
      await goesOn(guest);
      await guest.destroy();
      await waitFor('it to be gone', async () => (await events(agent, 't1', 'gone')).length === times, patienceMs);
    }
    await assertNothingLost(guest, [mirror]);

    for (const agentIs of ['up', 'down']) {
      if (agentIs === 'down') await agent.kill('SIGKILL');
      const { code, stderr } = await lab.libvirtd.virsh('create', written('t1', onPrimary));
      assert.notEqual(code, 0, `with the agent ${agentIs}`);
      assert.ok(stderr.includes(mirror), stderr);
    }
    await agent.start();
    await waitForLibvirt(agent);

    await create(onPrimary.replaceAll(primary.file, mirror).replace(/<metadata>[\s\S]*<\/metadata>/, ''));
    assert.equal((await waitState(agent, 't1', 'failed-over')).runningOn, 'mirror');
    await goesOn(guest);
    await guest.destroy();
    await assertNothingLost(guest, [mirror]);
  });

  it('that declares the mirror or the primary of another domain is told, never armed, and costs that one nothing', async () => {
    const { agent, lab } = scene;
    const [first, second] = await Promise.all(
      ['c1', 'c2'].map(async (name) => {
        const image = await lab.image(`${name}.raw`);
        const guest = await scene.guest({ name, cmdline, disks: [{ dev: 'vda', bus: 'virtio', image }] });
        return { guest, primary: image.file, mirror: lab.path(`${name}-mirror.raw`) };
      }),
    );
    const { guest, primary, mirror } = first!;
    await agent.mustCdp('protect', 'c1', '--disk', 'vda', '--mirror', mirror, '--create');
    await waitState(agent, 'c1', 'protected');
    const free = await definition('c2');
    const contested = async (): Promise<number> => (await events(agent, 'c2', 'mirror-contested')).length;
    const assertApart = async (): Promise<void> => {
      assert.equal((await told('c2', 'c1')).state, 'waiting');
      assert.notDeepEqual(await roots(second!.guest), ['cdp-vda']);
      assert.equal((await waitState(agent, 'c1', 'protected')).reason, null);
      await goesOn(guest, 20);
      await assertNothingLost(guest, [primary, mirror]);
    };

    await define('c2', declaring(free, mirror));
    await waitFor('it to be contested', async () => (await contested()) === 1, patienceMs);
    await told('c2', `'${mirror}' is the mirror of disk vda of c1`);
    await assertApart();
    await agent.restart();
    await waitForLibvirt(agent);
    await assertApart();

    await define('c2', declaring(free, primary));
    await told('c2', `'${primary}' is the primary of disk vda of c1`);
    await assertApart();
    assert.equal(await contested(), 2);

    const { file: own } = await lab.image('c2-mirror.raw');
    await define('c2', declaring(free, own));
    await waitState(agent, 'c2', 'protected');
    await goesOn(second!.guest);
    await endWell(second!.guest, [second!.primary, own]);
    await endWell(guest, [primary, mirror]);
  });

  it('without the disk, of a foreign disk, with its disks swapped or of a retired primary leads to no wrong copy', async () => {
    const { agent, lab } = scene;
    const images = [await lab.image('s1-a.raw'), await lab.image('s1-b.raw')];
    const [a, b] = images.map(({ file }) => file) as [string, string];
    const [mirrorA, mirrorB] = [lab.path('s1-a-mirror.raw'), lab.path('s1-b-mirror.raw')];
    const guest = await scene.guest({
      name: 's1',
      cmdline,
      disks: [
        { dev: 'vda', bus: 'virtio', image: images[0]! },
        { dev: 'vdb', bus: 'virtio', image: images[1]! },
      ],
    });
    await agent.mustCdp('protect', 's1', '--disk', 'vda', '--mirror', mirrorA, '--create');
    await agent.mustCdp('protect', 's1', '--disk', 'vdb', '--mirror', mirrorB, '--create');
    await waitState(agent, 's1', 'protected', 'vdb');
    const good = await definition('s1');

    await define('s1', good.replace(/<disk type='file' device='disk'>(?:(?!<\/disk>)[\s\S])*vdb[\s\S]*?<\/disk>/, ''));
    assert.equal((await told('s1', 'no disk vdb any more', 'vdb')).state, 'protected');
    await define('s1', good);
    await waitDisk(agent, 's1', 'no longer told of', ({ reason }) => reason === null, 'vdb');
    await goesOn(guest, 20);
    await endWell(guest, [a, mirrorA]);
    await assertNothingLost(guest, [b, mirrorB], 'vdb');
    await waitState(agent, 's1', 'stopped', 'vdb');

    // Another disk than the one that the mirror was made of does not overwrite the mirror.
    const { file: foreign } = await lab.image('s1-foreign.raw');
    const before = contents(mirrorA);
    await define('s1', good.replaceAll(`'${a}'`, `'${foreign}'`));
    await told('s1', foreign);
    await boots(guest, () => lab.virsh('start', 's1'));
    await waitState(agent, 's1', 'protected', 'vdb');
    assert.equal((await waitState(agent, 's1', 'waiting', 'vda')).runningOn, 'primary');
    assert.ok((await told('s1', 'not')).reason?.includes('unprotect'));
    await guest.destroy();
    await waitState(agent, 's1', 'stopped', 'vdb');
    assert.equal(contents(mirrorA), before);

    // Each image keeps its own mirror, whatever its disk is called.
    await define(
      's1',
      good.replaceAll(`'${a}'`, "'the-first'").replaceAll(`'${b}'`, `'${a}'`).replaceAll("'the-first'", `'${b}'`),
    );
    await waitDisk(agent, 's1', 'called vdb', ({ primary }) => primary.source === a, 'vdb');
    await boots(guest, () => lab.virsh('start', 's1'));
    for (const dev of ['vda', 'vdb']) await waitState(agent, 's1', 'protected', dev);
    await goesOn(guest, 20);

    await agent.mustCdp('failover', 's1', '--disk', 'vdb');
    const newA = lab.path('s1-a-new.raw');
    await agent.mustCdp('rebuild', 's1', '--disk', 'vdb', '--to', newA);
    await waitState(agent, 's1', 'protected', 'vdb');
    await guest.shutdown();
    await assertIdentical(newA, mirrorA);
    await assertIdentical(b, mirrorB);
    await waitState(agent, 's1', 'stopped', 'vdb');
    const rebuilt = await definition('s1');
    await define('s1', rebuilt.replaceAll(newA, a));
    await waitFor(
      'the new primary in the definition again',
      async () => (await sourceOf(guest, 'next start', 'vdb')) === newA,
      patienceMs,
    );
    await agent.kill('SIGKILL');
    await define('s1', rebuilt.replaceAll(newA, a));
    const refused = await lab.libvirtd.virsh('start', 's1');
    assert.notEqual(refused.code, 0);
    assert.ok(refused.stderr.includes(newA), refused.stderr);
    await agent.start();
    await waitForLibvirt(agent);
    assert.deepEqual((await status(agent, 's1')).disks.map(({ primary }) => primary.source).sort(), [b, newA].sort());
  });
});
