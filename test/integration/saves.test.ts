import assert from 'node:assert/strict';
import type { Guest } from '../lab/guest.ts';
import { must } from '../lab/run.ts';
import type { NbdServer } from '../lab/storage.ts';
import { endWell, goesOn } from './copies-hold.ts';
import { setScene, sourceOf, waitDisk, waitState } from './scene.ts';

/** A saved domain goes on in another QEMU, which replays what was queued, and counts no writes of before. */
describe('a domain that is saved', function () {
  this.timeout(150_000);
  const scene = setScene({ config: { resync: { max_bytes_per_s: 24 << 20 } } });
  let guest: Guest;
  let primary: string;
  let mirror: NbdServer;

  before(async function () {
    this.timeout(150_000);
    const { lab, agent } = scene;
    await agent.installHook();
    lab.libvirtd.reload();
    const image = await lab.image('web1.raw');
    primary = image.file;
    await must('dd', 'if=/dev/urandom', `of=${primary}`, 'bs=1M', 'count=30', 'seek=34', 'conv=notrunc');
    mirror = await lab.nbd({ name: 'web1-mirror' });
    guest = await scene.residentGuest({
      name: 'web1',
      cmdline: 'witness.rate=50 witness.blocks=8000',
      disks: [{ dev: 'vda', bus: 'virtio', image }],
    });
    await agent.mustCdp('protect', 'web1', '--disk', 'vda', '--mirror', mirror.uri, '--no-wait');
  });

  /** Nothing is expected of a mirror in another QEMU: until it was synced, the disk is not called protected. */
  async function saveAndStart(): Promise<void> {
    const boots = guest.witness.boots;
    await scene.lab.virsh('managedsave', 'web1');
    await waitState(scene.agent, 'web1', 'stopped');
    await scene.lab.virsh('start', 'web1');
    await goesOn(guest, 10);
    assert.equal(guest.witness.boots, boots, 'the guest did not boot');
  }

  it('in mid-sync is synced from the beginning', async () => {
    await waitDisk(scene.agent, 'web1', 'in mid-sync', ({ job }) => job !== null);
    await saveAndStart();
    await waitState(scene.agent, 'web1', 'protected');
  });

  it('while it is protected is protected again with nobody doing anything', async () => {
    await saveAndStart();
    const { consistentAsOf, current } = (
      await waitDisk(scene.agent, 'web1', 'looked at', ({ state }) => state !== 'stopped')
    ).mirror;
    assert.ok(current || consistentAsOf === null || Date.parse(consistentAsOf) < Date.now());
    await waitState(scene.agent, 'web1', 'protected');
    await goesOn(guest, 10);
  });

  it('while it is exposed goes on on its primary, and is protected when the mirror is back', async () => {
    mirror.failAll();
    await waitState(scene.agent, 'web1', 'exposed');
    await goesOn(guest, 10);
    await saveAndStart();
    mirror.heal();
    await waitState(scene.agent, 'web1', 'protected');
  });

  it('while it is failed over goes on on its mirror; while it is rebuilt libvirt refuses', async () => {
    const { agent, lab } = scene;
    await agent.mustCdp('failover', 'web1');
    await goesOn(guest, 10);
    await saveAndStart();
    assert.equal((await waitState(agent, 'web1', 'failed-over')).runningOn, 'mirror');
    assert.equal(await sourceOf(guest, 'live'), mirror.uri);

    const rebuilt = lab.path('web1-new.raw');
    await agent.mustCdp('rebuild', 'web1', '--to', rebuilt, '--no-wait');
    await waitDisk(agent, 'web1', 'in mid-rebuild', ({ job }) => job !== null);
    assert.match((await lab.libvirtd.virsh('managedsave', 'web1')).stderr, /active block job/);
    await waitState(agent, 'web1', 'protected');
    await goesOn(guest, 10);
    await endWell(guest, [rebuilt, mirror.file]);
  });
});
