import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { highestRecord, outOfOrder } from '../lab/copies.ts';
import type { Side } from '../../src/protection/model.ts';
import type { Step } from '../../src/protection/steps.ts';
import type { Agent } from '../lab/agent.ts';
import type { Guest } from '../lab/guest.ts';
import { Daemon, tail } from '../lab/run.ts';
import type { NbdServer } from '../lab/storage.ts';
import { waitFor } from '../lab/wait.ts';
import { assertNothingLost, goesOn } from './copies-hold.ts';
import { events, patienceMs, roots, setScene, status, waitForLibvirt, waitState } from './scene.ts';

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

  /** Ends the agent that runs, and starts one that dies after such a step, or never. */
  async function newAgent(lastStep?: Step['step']): Promise<void> {
    await agent.kill('SIGKILL');
    agent = await scene.lab.agent(lastStep === undefined ? {} : { env: { VIRT_CDP_TEST_DIE_AFTER_STEPS: lastStep } });
    await waitForLibvirt(agent);
  }

  /** From which of a disk's copies a start is allowed, by what the agent says. */
  async function currentSides(dev: string): Promise<Side[]> {
    const disk = (await status(agent, 'db1')).disks.find((one) => one.dev === dev)!;
    return (['primary', 'mirror'] as const).filter((side) => disk[side].current);
  }

  async function currentCopies(dev: string): Promise<string[]> {
    const sides = await currentSides(dev);
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

  /** Primaries are back and stale, or never were left. */
  async function mend(): Promise<void> {
    await waitFor('the domain to be under way', async () => (await status(agent, 'db1')).running, patienceMs);
    for (const { dev, primary } of (await status(agent, 'db1')).disks)
      if (!primary.current) await agent.mustCdp('rebuild', 'db1', '--disk', dev, '--to', 'original');
    await assertProtected();
  }

  /** How often QEMU lets a domain's guest run and stops it, from now on; `end` waits for so many of both. */
  function followRunning(domain: string): { end: (count: number) => Promise<string[]> } {
    const { lab } = scene;
    const logPath = lab.path(`${domain}-running.log`);
    const listen = ['qemu-monitor-event', domain, '--event', 'STOP|RESUME', '--regex', '--loop'];
    const listener = new Daemon('stdbuf', ['-oL', 'virsh', '-q', '-c', lab.libvirtd.uri, ...listen], { logPath });
    const seen = (): string[] =>
      [...readFileSync(logPath, 'utf8').matchAll(/^event (\w+) /gm)].map(([, name = '']) => name);
    return {
      end: async (count) => {
        await waitFor(
          `${count} events of ${domain}`,
          () => seen().length >= count,
          patienceMs,
          () => tail(logPath),
        );
        await listener.end();
        return seen();
      },
    };
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

  it('loses the primaries of all its disks at once: the guest goes on with the mirrors, of which none is ahead of another', async () => {
    await assertProtected();
    for (const dev of devs) server(dev, 'primary').failAll();
    for (const dev of devs) await waitState(agent, 'db1', 'failed-over', dev);
    await goesOn(guest, 40, 'vdb');
    const { state, disks } = await status(agent, 'db1');
    assert.deepEqual([state, ...disks.map((disk) => disk.state)], ['failed-over', 'failed-over', 'failed-over']);
    assert.deepEqual(await roots(guest), ['cdp-vda-mirror', 'cdp-vdb-mirror']);
    assert.deepEqual(await Promise.all(devs.map(currentSides)), [['mirror'], ['mirror']]);
    await guest.suspend();
    await assertOneMoment();
    await guest.resume();
    for (const dev of devs) server(dev, 'primary').heal();
    await mend();
  });

  it('killed with the whole host while one disk loses its primary, has no gap between any copies that may be started', async () => {
    const instants = [
      {
        lastStep: 'dropPair',
        current: ['primary', 'mirror'],
        what: 'before the record says that the disk is on its mirror',
      },
      { lastStep: 'resume', current: ['mirror'], what: 'when the guest runs on it' },
    ] as const;
    for (const { lastStep, current, what } of instants) {
      await assertProtected();
      await newAgent(lastStep);
      await goesOn(guest, 20, 'vdb');
      server('vda', 'primary').failAll();
      await waitFor('the agent to die', () => !isAlive(agent.pid), patienceMs);
      if (lastStep === 'resume') await goesOn(guest, 20, 'vdb');
      process.kill(guest.qemuPid, 'SIGKILL');
      await guest.waitState('shut off', patienceMs);
      server('vda', 'primary').heal();
      await newAgent();
      await waitState(agent, 'db1', 'stopped', 'vda');
      assert.deepEqual(await currentSides('vda'), current, what);
      assert.deepEqual(await currentSides('vdb'), ['primary', 'mirror'], what);
      await assertOneMoment();
      const boots = guest.witness.boots;
      await agent.mustCdp('start', 'db1');
      await guest.witness.waitReady(patienceMs, boots + 1);
      await mend();
    }
  });

  it('is protected again at a start without copying: all its disks are armed under one pause', async () => {
    await guest.suspend();
    const { lab } = scene;
    const images = await Promise.all(devs.map((dev) => lab.image(`db2-${dev}.raw`, 'raw', sizeBytes)));
    const mirrors = await Promise.all(devs.map((dev) => lab.nbd({ name: `db2-${dev}-mirror`, sizeBytes })));
    const db2 = await scene.guest({
      name: 'db2',
      cmdline: 'witness.ordered=1 witness.rate=100',
      disks: devs.map((dev, index) => ({ dev, bus: 'virtio', image: images[index]! })),
    });
    for (const [index, dev] of devs.entries())
      await agent.mustCdp('protect', 'db2', '--disk', dev, '--mirror', mirrors[index]!.uri, '--no-wait');
    for (const dev of devs) await waitState(agent, 'db2', 'protected', dev);
    await db2.shutdown();
    await waitState(agent, 'db2', 'stopped');

    const run = followRunning('db2');
    await db2.start();
    for (const dev of devs) await waitState(agent, 'db2', 'protected', dev);
    await goesOn(db2, 20, 'vdb');
    const armed = (await events(agent, 'db2', 'armed')).slice(-2);
    assert.deepEqual(armed.map(({ disk, detail }) => [disk, detail]).sort(), [
      ['vda', { copied: 0 }],
      ['vdb', { copied: 0 }],
    ]);
    assert.deepEqual(await run.end(3), ['RESUME', 'STOP', 'RESUME'], 'the start, and one pause');
    await db2.shutdown();
    for (const [index, dev] of devs.entries())
      await assertNothingLost(db2, [images[index]!.file, mirrors[index]!.file], dev);
    await guest.resume();
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
