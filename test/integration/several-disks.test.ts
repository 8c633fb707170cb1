import assert from 'node:assert/strict';
import { highestRecord, outOfOrder } from '../lab/copies.ts';
import type { Agent } from '../lab/agent.ts';
import type { Guest } from '../lab/guest.ts';
import type { NbdServer } from '../lab/storage.ts';
import { waitFor } from '../lab/wait.ts';
import { assertNothingLost, goesOn } from './copies-hold.ts';
import { patienceMs, roots, setScene, status, waitForLibvirt, waitState } from './scene.ts';

const sizeBytes = 16 << 20;
const devs = ['vda', 'vdb'] as const;

/** Record n goes to vdb only when vda has acknowledged it, and record n + 1 to vda only when vdb has. */
describe('a domain with several disks', function () {
  this.timeout(240_000);
  const scene = setScene();
  let agent: Agent;
  let guest: Guest;
  const servers = new Map<string, NbdServer>();

  const server = (dev: string, side: 'primary' | 'mirror'): NbdServer => servers.get(`${dev}-${side}`)!;

  before(async function () {
    this.timeout(240_000);
    const { lab } = scene;
    agent = scene.agent;
    await agent.mustCdp('install-hook', '--dir', lab.libvirtd.hooksDir, '--config', agent.configPath);
    lab.libvirtd.reload();
    for (const name of devs.flatMap((dev) => [`${dev}-primary`, `${dev}-mirror`]))
      servers.set(name, await lab.nbd({ name, sizeBytes }));
    guest = await scene.residentGuest({
      name: 'db1',
      cmdline: 'witness.ordered=1 witness.rate=100',
      disks: devs.map((dev) => ({
        dev,
        bus: 'virtio',
        image: { format: 'raw', nbd: server(dev, 'primary').address },
      })),
    });
    for (const dev of devs) await agent.mustCdp('protect', 'db1', '--disk', dev, '--mirror', server(dev, 'mirror').uri);
  });

  afterEach(async function () {
    this.timeout(patienceMs);
    await newAgent();
  });

  /** Ends the agent that runs, and starts one that dies after its n-th step, or never. */
  async function newAgent(dieAfterSteps?: number): Promise<void> {
    await agent.kill('SIGKILL');
    agent = await scene.lab.agent(
      dieAfterSteps === undefined ? {} : { env: { VIRT_CDP_TEST_DIE_AFTER_STEPS: String(dieAfterSteps) } },
    );
    await waitForLibvirt(agent);
  }

  /** The copies of a disk from which a start is allowed, by what the agent says. */
  async function currentCopies(dev: string): Promise<string[]> {
    const disk = (await status(agent, 'db1')).disks.find((one) => one.dev === dev)!;
    const sides = (['primary', 'mirror'] as const).filter((side) => disk[side].current);
    assert.ok(sides.length > 0, `no copy of ${dev} is current`);
    return sides.map((side) => server(dev, side).file);
  }

  /** Whichever copies a start takes, the first disk is at most one record ahead, and the second never. */
  async function assertOneMoment(): Promise<void> {
    const { boots } = guest.witness.promised('vda');
    for (const first of await currentCopies('vda')) {
      for (const second of await currentCopies('vdb')) {
        const [a, b] = [await highestRecord(first, boots), await highestRecord(second, boots)];
        assert.equal(a.epoch, b.epoch, `${first} and ${second} are of different boots`);
        assert.ok(a.n === b.n || a.n === b.n + 1, `${first} ends with ${a.n}, ${second} with ${b.n}`);
        assert.deepEqual(await outOfOrder(first, second, boots), []);
      }
    }
    for (const dev of devs) await assertNothingLost(guest, await currentCopies(dev), dev);
  }

  async function assertProtected(): Promise<void> {
    for (const dev of devs) await waitState(agent, 'db1', 'protected', dev);
    assert.deepEqual(await roots(guest), ['cdp-vda', 'cdp-vdb']);
    await goesOn(guest, 20, 'vdb');
  }

  /** The primary of vda is back and stale, or it never was left. */
  async function mend(): Promise<void> {
    await waitFor('vda to be under way', async () => (await status(agent, 'db1')).running, patienceMs);
    const { primary } = (await status(agent, 'db1')).disks[0]!;
    if (!primary.current) await agent.mustCdp('rebuild', 'db1', '--disk', 'vda', '--to', 'original');
    await assertProtected();
  }

  it('has each disk in a state of its own, and the worst is its own; the other disk goes on with both copies', async () => {
    await assertProtected();
    server('vda', 'primary').failAll();
    await waitState(agent, 'db1', 'failed-over', 'vda');
    await goesOn(guest, 40, 'vdb');
    const { state, disks } = await status(agent, 'db1');
    assert.deepEqual([state, ...disks.map((disk) => disk.state)], ['failed-over', 'failed-over', 'protected']);
    assert.deepEqual(await roots(guest), ['cdp-vda-mirror', 'cdp-vdb']);
    await guest.suspend();
    await assertOneMoment();
    await guest.resume();
    server('vda', 'primary').heal();
    await mend();
  });

  it('killed with the whole host while one disk loses its primary, has no gap between any copies that may be started', async () => {
    // Before the record says that the disk is on its mirror; and when the guest runs on it.
    for (const steps of [5, 9]) {
      await assertProtected();
      await newAgent(steps);
      await goesOn(guest, 20, 'vdb');
      server('vda', 'primary').failAll();
      await waitFor('the agent to die', () => !isAlive(agent.pid), patienceMs);
      process.kill(guest.qemuPid, 'SIGKILL');
      await guest.waitState('shut off', patienceMs);
      server('vda', 'primary').heal();
      await newAgent();
      await waitState(agent, 'db1', 'stopped', 'vda');
      await assertOneMoment();
      const boots = guest.witness.boots;
      await agent.mustCdp('start', 'db1');
      await guest.witness.waitReady(patienceMs, boots + 1);
      await mend();
    }
  });
});

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}
