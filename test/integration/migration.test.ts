import assert from 'node:assert/strict';
import type { Guest } from '../lab/guest.ts';
import { Libvirtd } from '../lab/libvirtd.ts';
import type { Finished } from '../lab/run.ts';
import { endWell, goesOn } from './copies-hold.ts';
import { events, setScene, waitForLibvirt, waitState } from './scene.ts';

describe('a live migration by plain virsh', function () {
  this.timeout(150_000);
  const scene = setScene();
  let other: Libvirtd;

  before(async () => {
    other = await Libvirtd.start();
  });

  after(async function () {
    this.timeout(60_000);
    await other.close();
  });

  /** Two libvirtds on one machine, which share their files, are two hosts to libvirt. */
  async function migrate(name: string, from: Libvirtd, to: Libvirtd): Promise<Finished> {
    const listen = ['tcp://127.0.0.1', '--listen-address', '127.0.0.1'];
    return from.virsh('migrate', '--live', '--unsafe', name, to.uri, ...listen);
  }

  async function mustMigrate(name: string, from: Libvirtd, to: Libvirtd): Promise<void> {
    const { code, stderr } = await migrate(name, from, to);
    assert.equal(code, 0, stderr);
  }

  async function protectedGuest(
    name: string,
    format: 'raw' | 'qcow2',
  ): Promise<{ guest: Guest; primary: string; mirror: string }> {
    const image = await scene.lab.image(`${name}.${format}`, format);
    const mirror = scene.lab.path(`${name}-mirror.raw`);
    const guest = await scene.guest({
      name,
      cmdline: 'witness.blocks=2000 witness.rate=50',
      disks: [{ dev: 'vda', bus: 'virtio', image }],
    });
    await scene.agent.mustCdp('protect', name, '--disk', 'vda', '--mirror', mirror, '--create');
    await goesOn(guest, 20);
    return { guest, primary: image.file, mirror };
  }

  it('takes the guest to its primary elsewhere; from then on the mirror is stale, and back here it gets a full sync', async () => {
    const { agent, lab } = scene;
    const { guest, primary, mirror } = await protectedGuest('m1', 'qcow2');
    for (const agentIs of ['up', 'down']) {
      if (agentIs === 'down') await agent.kill('SIGKILL');
      await mustMigrate('m1', lab.libvirtd, other);
      if (agentIs === 'down') {
        await agent.start();
        await waitForLibvirt(agent);
      }
      const left = await waitState(agent, 'm1', 'stopped');
      assert.deepEqual([left.primary.current, left.mirror.current], [true, false], `with the agent ${agentIs}`);
      await goesOn(guest, 20);
      await mustMigrate('m1', other, lab.libvirtd);
      await waitState(agent, 'm1', 'protected');
      await goesOn(guest, 20);
    }
    assert.equal((await events(agent, 'm1', 'migrated-away')).length, 2);
    await endWell(guest, [{ filename: primary, format: 'qcow2' }, mirror]);
  });

  it('of a protected raw file is refused by its lock, and the guest stays protected; held it can go', async () => {
    const { agent, lab } = scene;
    const { guest, primary, mirror } = await protectedGuest('m2', 'raw');
    const { code, stderr } = await migrate('m2', lab.libvirtd, other);
    assert.notEqual(code, 0);
    assert.match(stderr, /lock/);
    await waitState(agent, 'm2', 'protected');
    await goesOn(guest, 20);

    await agent.mustCdp('hold', 'm2');
    await mustMigrate('m2', lab.libvirtd, other);
    const left = await waitState(agent, 'm2', 'stopped');
    assert.deepEqual([left.primary.current, left.mirror.current], [true, false]);
    await goesOn(guest, 20);
    await mustMigrate('m2', other, lab.libvirtd);
    await waitState(agent, 'm2', 'held');
    await agent.mustCdp('release', 'm2');
    await waitState(agent, 'm2', 'protected');
    await goesOn(guest, 20);
    await endWell(guest, [primary, mirror]);
  });
});
