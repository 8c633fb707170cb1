import assert from 'node:assert/strict';
import type { Guest } from '../lab/guest.ts';
import { recordSize } from '../lab/record.ts';
import type { NbdServer } from '../lab/storage.ts';
import { assertNothingLost, endWell, goesOn, writeBlock } from './copies-hold.ts';
import { goThroughFiveSteps, titleOf, type FiveSteps } from './five-steps.ts';
import { events, setScene, status, waitState } from './scene.ts';

const cases: FiveSteps[] = [
  {
    bus: 'virtio',
    iothread: true,
    primary: 'raw over NBD',
    mirror: 'raw over NBD',
    rebuilt: 'qcow2',
    lost: 'it fails',
  },
  { bus: 'scsi', iothread: false, primary: 'qcow2 file', mirror: 'qcow2 file', rebuilt: 'raw', lost: 'planned' },
];

describe('a mirror job in the place of the quorum', function () {
  this.timeout(150_000);
  const scene = setScene({ config: { engine: 'mirror' } });
  let guest: Guest;
  let primary: string;
  let mirror: NbdServer;

  for (const [index, one] of cases.entries()) {
    it(`goes through the five steps: ${titleOf(one)}`, async () => {
      await goThroughFiveSteps(scene, `web${index}`, one, async () => {
        const { engine, guarantee } = await status(scene.agent, `web${index}`);
        assert.deepEqual([engine, guarantee], ['mirror', 'relaxed']);
      });
    });
  }

  it('can not hold an acknowledgement back: policy strict is refused', async () => {
    const { lab, agent } = scene;
    const image = await lab.image('bank1.raw', 'raw', 32 << 20);
    primary = image.file;
    mirror = await lab.nbd({ name: 'bank1-mirror', sizeBytes: 32 << 20 });
    const disks = [{ dev: 'vda', bus: 'virtio' as const, image }];
    guest = await scene.residentGuest({ name: 'bank1', disks, cmdline: 'witness.rate=50' });
    const protect = ['protect', 'bank1', '--disk', 'vda', '--mirror', mirror.uri];
    const refused = await agent.cdp(...protect, '--policy', 'strict');
    assert.equal(refused.code, 1);
    assert.match(refused.stderr, /strict needs QEMU's quorum driver/);
    await agent.mustCdp(...protect);
    await waitState(agent, 'bank1', 'protected');
  });

  it('lets the guest go on when the mirror fails, which is told, and mended by a delta', async () => {
    const { agent } = scene;
    const syncs = (await events(agent, 'bank1', 'resync-finished')).length;
    mirror.failWrites();
    await goesOn(guest);
    const { mirror: lost } = await waitState(agent, 'bank1', 'exposed');
    assert.deepEqual([lost.current, lost.consistentAsOf], [false, null]);
    assert.equal((await events(agent, 'bank1', 'mirror-lost')).length, 1);
    mirror.heal();
    await waitState(agent, 'bank1', 'protected');
    assert.equal((await events(agent, 'bank1', 'resync-finished')).length, syncs + 1);
    await goesOn(guest);
  });

  it('is not left for a mirror that lost something unnoticed: a failover is put off until that is brought back', async () => {
    const { agent } = scene;
    const { seq = 0 } = (await events(agent, 'bank1')).at(-1) ?? {};
    const written = await someWrites();
    await guest.suspend();
    await mirror.kill();
    for (const block of written) await writeBlock(mirror.file, block, Buffer.alloc(recordSize));
    await mirror.restart();
    await agent.mustCdp('failover', 'bank1');
    await waitState(agent, 'bank1', 'failed-over');
    const told = (await events(agent, 'bank1')).filter((one) => one.seq > seq);
    assert.ok(
      told.some(({ event, detail }) => event === 'step-failed' && detail['step'] === 'flush'),
      'why was not told',
    );
    const brought = told.findIndex(({ event }) => event === 'resync-finished');
    assert.ok(
      brought >= 0 && brought < told.findIndex(({ event }) => event === 'failed-over'),
      'nothing was brought back',
    );
    await assertNothingLost(guest, [mirror.file]);
    await guest.resume();
    await goesOn(guest);
    await agent.mustCdp('rebuild', 'bank1', '--to', 'original');
    await waitState(agent, 'bank1', 'protected');
  });

  /** The blocks of some of the guest's latest writes. */
  async function someWrites(): Promise<Set<number>> {
    const written = new Set<number>();
    const unsubscribe = guest.witness.onAck(({ block }) => written.add(block));
    await goesOn(guest, 100);
    unsubscribe();
    return written;
  }

  it('that fails while the agent is down is found by the next one, and what the mirror lost unflushed is brought back', async () => {
    const { agent } = scene;
    const written = await someWrites();
    await agent.kill('SIGKILL');
    await mirror.kill();
    await goesOn(guest);
    // What a server's volatile cache held is gone with it.
    for (const block of written) await writeBlock(mirror.file, block, Buffer.alloc(recordSize));
    await agent.start();
    await waitState(agent, 'bank1', 'exposed');
    await mirror.restart();
    await waitState(agent, 'bank1', 'protected');
    await goesOn(guest);
    await endWell(guest, [primary, mirror.file]);
  });
});
