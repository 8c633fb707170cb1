import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import type { Guest } from '../lab/guest.ts';
import { recordSize } from '../lab/record.ts';
import type { NbdServer } from '../lab/storage.ts';
import { waitFor } from '../lab/wait.ts';
import { assertIdentical, assertNothingLost, endWell, goesOn, Mark, writeBlock } from './copies-hold.ts';
import { goThroughFiveSteps, titleOf, type FiveSteps } from './five-steps.ts';
import { events, patienceMs, roots, setScene, status, waitForLibvirt, waitState } from './scene.ts';

const config = { engine: 'mirror', mirror: { timeout_ms: 2000 } };

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
  const scene = setScene({ config });
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

  describe('of a domain with two disks', () => {
    const devs = ['vda', 'vdb'] as const;
    const sizeBytes = 32 << 20;
    /** The guest does not write there. */
    const markBlock = 8000;
    let two: Guest;
    const servers = new Map<string, NbdServer>();
    const server = (dev: string, side: 'primary' | 'mirror'): NbdServer => servers.get(`${dev}-${side}`)!;

    before(async () => {
      const { lab, agent } = scene;
      for (const name of devs.flatMap((dev) => [`${dev}-primary`, `${dev}-mirror`]))
        servers.set(name, await lab.nbd({ name, sizeBytes }));
      two = await scene.residentGuest({
        name: 'db1',
        cmdline: 'witness.rate=50 witness.blocks=7000',
        disks: devs.map((dev) => ({
          dev,
          bus: 'virtio',
          image: { format: 'raw', nbd: server(dev, 'primary').address },
        })),
      });
      for (const dev of devs)
        await agent.mustCdp('protect', 'db1', '--disk', dev, '--mirror', server(dev, 'mirror').uri);
      await assertProtected();
    });

    async function assertProtected(): Promise<void> {
      for (const dev of devs) await waitState(scene.agent, 'db1', 'protected', dev);
      assert.equal((await status(scene.agent, 'db1')).engine, 'mirror');
      for (const dev of devs) await goesOn(two, 10, dev);
    }

    it('is held for both, and released by a delta of what was written meanwhile', async () => {
      const { agent } = scene;
      const mark = new Mark(server('vda', 'mirror').file, markBlock);
      await agent.mustCdp('hold', 'db1');
      for (const dev of devs) await waitState(agent, 'db1', 'held', dev);
      assert.match((await roots(two)).join(), /^libvirt-.*,libvirt-/);
      await mark.slipIn();
      await goesOn(two);
      await agent.mustCdp('release', 'db1');
      await assertProtected();
      assert.equal(await mark.isThere(), true, 'the whole mirror was written');
      await mark.clear();
    });

    it('that hangs is left, the other disk keeps both copies, and everything is brought up to date', async () => {
      const { agent } = scene;
      server('vdb', 'mirror').hang();
      await waitState(agent, 'db1', 'exposed', 'vdb');
      for (const dev of devs) await goesOn(two, 10, dev);
      assert.equal((await waitState(agent, 'db1', 'protected', 'vda')).runningOn, 'both');
      await assertNothingLost(two, [server('vdb', 'primary').file], 'vdb');
      server('vdb', 'mirror').unhang();
      await assertProtected();
    });

    it('and an agent that dies at some steps of failing one over, or of the way back, leave no disk behind', async () => {
      let { agent } = scene;
      const next = async (env: Record<string, string> = {}): Promise<void> => {
        await agent.kill('SIGKILL');
        agent = await scene.lab.agent({ config, env });
        await waitForLibvirt(agent);
      };
      for (const steps of [3, 6]) {
        await next({ VIRT_CDP_TEST_DIE_AFTER_STEPS: String(steps) });
        server('vda', 'primary').failAll();
        await waitFor('the agent to die', () => !existsSync(`/proc/${agent.pid}`), patienceMs);
        await next();
        await waitState(agent, 'db1', 'failed-over', 'vda');
        for (const dev of devs) await goesOn(two, 10, dev);
        server('vda', 'primary').heal();
        await agent.mustCdp('rebuild', 'db1', '--disk', 'vda', '--to', 'original');
        await assertProtected();
      }
      await agent.kill('SIGKILL');
      await scene.agent.start();
      await assertProtected();
      await two.suspend();
      for (const dev of devs) await assertIdentical(server(dev, 'primary').file, server(dev, 'mirror').file);
      for (const dev of devs) await assertNothingLost(two, [server(dev, 'mirror').file], dev);
    });
  });
});
