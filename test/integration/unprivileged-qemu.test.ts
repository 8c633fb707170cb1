import assert from 'node:assert/strict';
import { statSync } from 'node:fs';
import type { Guest } from '../lab/guest.ts';
import type { Image } from '../lab/copies.ts';
import { must } from '../lab/run.ts';
import { LoopDevice, type NbdServer } from '../lab/storage.ts';
import { assertIdentical, assertNothingLost, goesOn } from './copies-hold.ts';
import { setScene, waitForLibvirt, waitState } from './scene.ts';

/** As packages set it: QEMU runs as a user of its own, with a /dev of its own, and may open what libvirt gave it alone. */
describe('a QEMU that may open nothing by itself', function () {
  this.timeout(120_000);
  const scene = setScene({}, { qemuAs: 'distribution' });
  const sizeBytes = 8 << 20;
  let guest: Guest;
  let nbd: NbdServer;
  let loop: LoopDevice;
  let primary: string;
  let mirror: string;

  before(async () => {
    const { lab, agent } = scene;
    mirror = lab.path('mirror.qcow2');
    nbd = await lab.nbd({ name: 'over-there', sizeBytes });
    loop = await LoopDevice.over((await lab.image('device.raw', 'raw', sizeBytes)).file, lab.root);
    const images = await Promise.all(
      ['a.qcow2', 'b.raw', 'c.raw'].map((name) => lab.image(name, name.endsWith('qcow2') ? 'qcow2' : 'raw', sizeBytes)),
    );
    primary = images[0]!.file;
    guest = await scene.residentGuest({
      name: 'confined',
      cmdline: 'witness.blocks=1000 witness.rate=50',
      disks: ['vda', 'vdb', 'vdc'].map((dev, n) => ({ dev, bus: 'virtio', image: images[n]! })),
    });
    const protect = async (dev: string, uri: string, ...more: string[]): Promise<unknown> =>
      agent.mustCdp('protect', 'confined', '--disk', dev, '--mirror', uri, ...more);
    await protect('vda', mirror, '--create');
    await protect('vdb', loop.path);
    await protect('vdc', nbd.uri);
  });

  after(async () => {
    await loop.close();
  });

  async function allProtected(): Promise<void> {
    for (const dev of ['vda', 'vdb', 'vdc']) await waitState(scene.agent, 'confined', 'protected', dev);
    await goesOn(guest, 20);
  }

  it('is protected by a file, a block device and a unix socket that are not its own', async () => {
    await allProtected();
    const { uid } = statSync(primary);
    assert.notEqual(uid, 0, "the primary is QEMU's");
    assert.equal(statSync(mirror).uid, 0, 'the mirror stays ours');
    const dev = await must('ls', `/proc/${guest.qemuPid}/root/dev`);
    assert.ok(!dev.includes('loop'), 'QEMU sees no block device');
  });

  it('has its copies compared, by images that are handed to it as well', async () => {
    await scene.agent.mustCdp('verify', 'confined', '--disk', 'vda');
    await goesOn(guest, 20);
  });

  it('opens them again after libvirtd has restarted, and a mirror that failed', async () => {
    const { lab, agent } = scene;
    await lab.libvirtd.restart();
    await waitForLibvirt(agent);
    await nbd.kill();
    await waitState(agent, 'confined', 'exposed', 'vdc');
    await agent.mustCdp('hold', 'confined');
    await nbd.restart();
    await agent.mustCdp('release', 'confined');
    await allProtected();
  });

  it('moves to the mirror and back to the old primary, which it opens again', async () => {
    const { agent } = scene;
    await agent.mustCdp('failover', 'confined', '--disk', 'vda');
    await goesOn(guest, 20);
    await agent.mustCdp('rebuild', 'confined', '--disk', 'vda', '--to', 'original');
    await allProtected();
  });

  it("starts from mirrors, which are libvirt's to give it then, and is rebuilt onto a file of its own", async () => {
    const { lab, agent } = scene;
    for (const disk of ['vda', 'vdb']) await agent.mustCdp('failover', 'confined', '--disk', disk);
    await guest.shutdown();
    assert.deepEqual([primary, mirror, loop.path].map(owner), [0, 0, 0], "nothing is left with QEMU's user");
    await guest.start();
    assert.notEqual(owner(mirror), 0, "the mirror is QEMU's");
    const rebuilt = lab.path('rebuilt.qcow2');
    await agent.mustCdp('rebuild', 'confined', '--disk', 'vda', '--to', rebuilt);
    await goesOn(guest, 20, 'vda');
    assert.notEqual(owner(rebuilt), 0, "the new primary is QEMU's");
    await guest.shutdown();
    assert.deepEqual([primary, mirror, rebuilt, loop.path].map(owner), [0, 0, 0, 0]);
    const qcow2 = (filename: string): Image => ({ filename, format: 'qcow2' });
    await assertNothingLost(guest, [qcow2(rebuilt), qcow2(mirror)]);
    await assertIdentical(qcow2(rebuilt), qcow2(mirror));
    await assertNothingLost(guest, [loop.path], 'vdb');
  });
});

function owner(path: string): number {
  return statSync(path).uid;
}
