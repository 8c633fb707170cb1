import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import type { Image } from '../lab/copies.ts';
import type { Guest } from '../lab/guest.ts';
import { must } from '../lab/run.ts';
import type { NbdServer } from '../lab/storage.ts';
import { assertIdentical, assertNothingLost, goesOn } from './copies-hold.ts';
import { events, setScene, waitState } from './scene.ts';

const qcow2 = (filename: string): Image => ({ filename, format: 'qcow2' });

/** Snapshots that others take and go back to. Both copies are qcow2 images, which hold internal ones. */
describe('a snapshot', function () {
  this.timeout(150_000);
  const scene = setScene();
  let guest: Guest;
  let primary: string;
  let mirror: NbdServer;

  before(async function () {
    this.timeout(150_000);
    const { lab, agent } = scene;
    const image = await lab.image('web1.qcow2', 'qcow2');
    primary = image.file;
    mirror = await lab.nbd({ name: 'web1-mirror', format: 'qcow2' });
    // An NBD export does not grow; the guest's memory goes into a snapshot too.
    await must('truncate', '--size', '512M', mirror.file);
    const mirrorXml = lab.path('web1-mirror.xml');
    writeFileSync(
      mirrorXml,
      `<disk type='network' device='disk'><driver name='qemu' type='qcow2'/>
         <source protocol='nbd' name='web1-mirror'><host transport='unix' socket='${lab.root}/nbd/web1-mirror.sock'/></source></disk>`,
    );
    guest = await scene.residentGuest({
      name: 'web1',
      cmdline: 'witness.rate=50',
      disks: [{ dev: 'vda', bus: 'virtio', image }],
    });
    await agent.mustCdp('protect', 'web1', '--disk', 'vda', '--mirror-xml', mirrorXml);
  });

  it('inside the primary is refused while protected, and taken while held; nothing goes back to it under a bitmap', async () => {
    const { agent, lab } = scene;
    const refused = await lab.libvirtd.virsh('snapshot-create-as', 'web1', 's1');
    assert.match(refused.stderr, /does not support snapshots/);
    await goesOn(guest, 10);
    await waitState(agent, 'web1', 'protected');

    await agent.mustCdp('hold', 'web1');
    await lab.virsh('snapshot-create-as', 'web1', 's1');
    await goesOn(guest, 10);
    const told = await guest.qmp('human-monitor-command', { 'command-line': 'loadvm s1' });
    assert.match(String(told), /active dirty bitmaps/);
    await guest.resume();
    await agent.mustCdp('release', 'web1');
    await goesOn(guest, 10);
  });

  it('outside, taken while exposed, gets a full sync: a bitmap on its overlay proves nothing', async () => {
    const { agent, lab } = scene;
    mirror.failAll();
    await waitState(agent, 'web1', 'exposed');
    const overlay = lab.path('web1.overlay');
    await guest.takeSnapshot(overlay);
    await goesOn(guest, 50);
    mirror.heal();
    await waitState(agent, 'web1', 'protected');
    await goesOn(guest, 10);

    await agent.mustCdp('hold', 'web1');
    await lab.virsh('blockcommit', 'web1', 'vda', '--active', '--pivot', '--wait');
    await agent.mustCdp('release', 'web1');
    await agent.mustCdp('failover', 'web1');
    await waitState(agent, 'web1', 'failed-over');
    const refused = await lab.libvirtd.virsh('snapshot-create-as', 'web1', 's3', '--disk-only', '--no-metadata');
    assert.notEqual(refused.code, 0, 'the primary is stale: an overlay over it would be too');
    // This one is in the mirror's image, beside what the guest goes on writing.
    await lab.virsh('snapshot-create-as', 'web1', 's4');
    await goesOn(guest, 10);
    await agent.mustCdp('rebuild', 'web1', '--to', 'original');
    await goesOn(guest, 10);
    await guest.suspend();
    await assertNothingLost(guest, [qcow2(primary), qcow2(mirror.file)]);
    await guest.resume();
  });

  it('to which the domain goes back makes the mirror stale, and a copy of the past by a full sync', async () => {
    const { agent, lab } = scene;
    const before = (await events(agent, 'web1')).at(-1)!.seq;
    await lab.virsh('snapshot-revert', 'web1', 's1');
    await goesOn(guest, 20);
    await waitState(agent, 'web1', 'protected');
    const told = (await events(agent, 'web1')).filter(({ seq }) => seq > before).map(({ event }) => event);
    assert.ok(told.includes('resync-finished'), told.join());
    await goesOn(guest, 20);
    await guest.shutdown();
    // What the guest was told before it went back is no more: what counts is that both copies have the same past.
    await assertIdentical(qcow2(primary), qcow2(mirror.file));
  });
});
