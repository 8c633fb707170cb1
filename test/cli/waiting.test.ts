import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { formatBytes, formatDuration, formatShare } from '../../src/cli/format.ts';
import { createOutput } from '../../src/cli/output.ts';
import { Progress, jobText } from '../../src/cli/progress.ts';
import { Stillness } from '../../src/cli/stillness.ts';
import { actionResultSchema } from '../../src/control/schema.ts';
import type { DiskStatus } from '../../src/protection/model.ts';
import { FakeAgent, diskWith, domainWith } from '../control/fake-agent.ts';
import { type Ended, errorCode, runHere, runProgram } from './run-cli.ts';

const gib = 1024 ** 3;
const syncing = (done: number): Partial<DiskStatus> => ({
  state: 'syncing',
  job: { kind: 'full-sync', done, total: 2 * gib },
});
const unmeasured: Partial<DiskStatus> = { state: 'syncing', job: { kind: 'full-sync', done: 0, total: 0 } };

describe('a command that waits', () => {
  let agent: FakeAgent;
  const protect = ['protect', 'web1', '--disk', 'vda', '--mirror', '/m'];
  beforeEach(async () => (agent = await new FakeAgent().start()));
  afterEach(() => agent.stop());

  const run = (...argv: string[]): Promise<Ended> => runHere(['--socket', agent.socketPath, ...argv]);
  const set = (changes: Partial<DiskStatus>): void => {
    agent.statuses.set('web1', domainWith({ disks: [diskWith(changes), diskWith({ dev: 'vdb', state: 'exposed' })] }));
  };

  /** Shows one state after the other, each announced by an event, and until it was looked at. */
  async function play(...steps: Partial<DiskStatus>[]): Promise<void> {
    while (agent.followers === 0) await sleep(5);
    for (const step of steps) {
      const { looks } = agent;
      set(step);
      agent.emit({});
      while (agent.looks === looks && agent.followers > 0) await sleep(5);
    }
  }

  it('stays until the named disk is protected, and tells each change', async () => {
    set({ state: 'waiting' });
    const [ended] = await Promise.all([run(...protect), play(unmeasured, syncing(0), syncing(gib), {})]);
    assert.equal(ended.code, 0);
    assert.equal(
      ended.stdout,
      [
        'protect of web1 accepted',
        'vda  waiting',
        'vda  full-sync  [....................]    0%  0 B of 2.0 GiB',
        'vda  full-sync  [##########..........]   50%  1.0 GiB of 2.0 GiB',
        'vda  protected',
        '',
      ].join('\n'),
    );
  });

  it('writes one line again and again on a terminal', async () => {
    set(syncing(0));
    const argv = ['--socket', agent.socketPath, ...protect];
    const [ended] = await Promise.all([runHere(argv, { tty: true }), play(syncing(gib / 2), syncing(gib), {})]);
    assert.match(ended.stdout, /\r\u001b\[Kvda {2}full-sync {2}\[#####\.+\] {3}25% .*\r\u001b\[Kvda .*50%/);
    assert.match(ended.stdout, /50% {2}1\.0 GiB of 2\.0 GiB\n/);
    assert.match(ended.stdout, /\nvda {2}\S*protected\S*\n$/);
  });

  it('with --json is silent until the end', async () => {
    set(syncing(0));
    const [ended] = await Promise.all([run('--json', ...protect), play(syncing(gib), {})]);
    const { message, status } = actionResultSchema.parse(JSON.parse(ended.stdout));
    assert.deepEqual([message, status?.disks[0]?.state], ['protect of web1 accepted', 'protected']);
  });

  it('fails at once when the disk breaks, with the reason', async () => {
    set(syncing(0));
    const [ended] = await Promise.all([run(...protect), play({ state: 'broken', reason: 'both copies are gone' })]);
    assert.equal(ended.code, 1);
    assert.match(ended.stderr, /^error: web1 vda is broken: both copies are gone\nhint: /);
  });

  it('does not take the job of a broken disk for progress', async () => {
    set({ ...syncing(gib), state: 'broken', reason: 'both copies are gone' });
    const ended = await run('rebuild', 'web1', '--disk', 'vda');
    assert.equal(ended.code, 1);
    assert.match(ended.stderr, /^error: web1 vda is broken: both copies are gone\n/);
  });

  it('fails when the disk goes on waiting for a reason', async () => {
    set({ state: 'waiting', reason: 'the mirror is too small' });
    const ended = await run('--json', ...protect);
    assert.equal(ended.code, 1);
    assert.equal(errorCode(ended), 'goal-not-reached');
  });

  it('stays for a disk that is on its way, though another is not', async () => {
    set(syncing(0));
    const [ended] = await Promise.all([run('resync', 'web1'), play(syncing(gib), { state: 'stopped' })]);
    assert.match(ended.stderr, /^error: web1 vda is stopped: the domain does not run any more\n/);
  });

  it('does not wait for what begins at the next start, but warns', async () => {
    const disks = [diskWith({ state: 'waiting', reason: 'protection begins at the next start' })];
    agent.onAct = () => ({
      message: 'declared',
      warnings: ['vda lacks the stop policy'],
      status: domainWith({ disks }),
    });
    assert.deepEqual(await run(...protect), {
      code: 0,
      stdout: 'declared\n',
      stderr: 'warning: vda lacks the stop policy\n',
    });
    agent.onAct = () => ({ message: 'declared', warnings: [], status: domainWith({ running: false, disks }) });
    assert.equal((await run(...protect)).code, 0);
  });

  it('with --no-wait does not', async () => {
    set(syncing(0));
    assert.deepEqual(await run(...protect, '--no-wait'), { code: 0, stdout: 'protect of web1 accepted\n', stderr: '' });
  });

  it('waits for the other commands too, each for its own goal', async () => {
    set({ state: 'failed-over', runningOn: 'mirror' });
    assert.equal((await run('failover', 'web1', '--disk', 'vda')).code, 0);
    for (const command of ['rebuild', 'resync']) {
      set({ state: 'failed-over', runningOn: 'mirror' });
      const [ended] = await Promise.all([run(command, 'web1', '--disk', 'vda'), play({ state: 'rebuilding' }, {})]);
      assert.equal(ended.code, 0);
      while (agent.followers > 0) await sleep(5);
    }
  });

  it('at Ctrl-C says that the work goes on', async () => {
    set(syncing(0));
    const ended = await runProgram(protect, { VIRT_CDP_SOCKET: agent.socketPath }, (stdout, kill) => {
      if (stdout.includes('full-sync')) kill('SIGINT');
    });
    assert.equal(ended.code, 130);
    assert.match(ended.stderr, /the work goes on in the agent; .*virt-cdp status web1/);
  });
});

describe('a disk is given up', () => {
  const giveUpMs = (...looks: [number, Partial<DiskStatus>][]): number | null => {
    const stillness = new Stillness();
    return looks.find(([nowMs, changes]) => stillness.isStuck(diskWith(changes), nowMs))?.[0] ?? null;
  };

  it('when its job has not moved for 30 s, whatever else changes', () => {
    const still = { ...syncing(gib), reason: 'a step failed' };
    assert.equal(giveUpMs([0, syncing(gib)], [29_000, still], [30_000, still], [30_500, still]), 30_500);
    assert.equal(giveUpMs([0, syncing(gib)], [29_000, syncing(gib + 1)], [58_000, syncing(gib + 1)]), null);
  });

  it('at once when it is broken, with a job or without', () => {
    assert.equal(giveUpMs([0, syncing(gib)], [500, { ...syncing(gib), state: 'broken' }]), 500);
    assert.equal(giveUpMs([0, { state: 'broken' }]), 0);
  });

  it('after 3 s of waiting with a reason, 30 s without one, but not between two jobs', () => {
    const waiting: Partial<DiskStatus> = { state: 'waiting', reason: 'no room' };
    assert.equal(giveUpMs([0, waiting], [3000, waiting], [3500, waiting]), 3500);
    assert.equal(
      giveUpMs([0, { state: 'waiting' }], [30_000, { state: 'waiting' }], [30_500, { state: 'waiting' }]),
      30_500,
    );
    assert.equal(giveUpMs([0, { state: 'rebuilding' }], [60_000, { state: 'rebuilding' }]), null);
  });
});

describe('the progress', () => {
  /** What is written when these are shown, one at each time in ms. */
  function shown(tty: boolean, ...looks: [number, Partial<DiskStatus>][]): string {
    let text = '';
    const stream = { write: (more: string) => (text += more), isTTY: tty, columns: 120 };
    const progress = new Progress(
      createOutput({ json: false, stdout: stream, stderr: stream, env: { NO_COLOR: '1' } }),
    );
    for (const [nowMs, changes] of looks) progress.show([diskWith(changes)], nowMs);
    return text;
  }

  it('shows no job before it is known how much there is to do', () => {
    for (const tty of [true, false]) assert.equal(shown(tty, [0, unmeasured], [500, unmeasured]), '');
    assert.match(
      shown(true, [0, unmeasured], [500, syncing(0)]),
      /^[^v]*vda {2}full-sync [^%]* 0% {2}0 B of 2\.0 GiB$/,
    );
  });

  it('shows a rate once it has seen the same job for a second', () => {
    const delta = (done: number): Partial<DiskStatus> => ({
      state: 'syncing',
      job: { kind: 'delta-sync', done, total: 2 * gib },
    });
    assert.doesNotMatch(shown(true, [0, syncing(0)], [999, syncing(gib)]), /\/s|left/);
    assert.doesNotMatch(
      shown(true, [0, syncing(0)], [900, syncing(gib)], [1100, delta(gib)], [1900, delta(gib)]),
      /\/s|left/,
    );
    assert.match(
      shown(true, [0, syncing(0)], [1000, syncing(gib)]),
      / 1\.0 GiB of 2\.0 GiB {2}1\.0 GiB\/s {2}~1 s left$/,
    );
  });
});

describe('numbers for people', () => {
  it('are sizes in powers of 1024', () => {
    assert.deepEqual([0, 1023, 1024, 1288490189, 150 * 1024 ** 2, 2 ** 50].map(formatBytes), [
      '0 B',
      '1023 B',
      '1.0 KiB',
      '1.2 GiB',
      '150 MiB',
      '1.0 PiB',
    ]);
  });

  it('are durations that one can grasp', () => {
    assert.deepEqual([0, 45_000, 720_000, 7_800_000, 273_600_000].map(formatDuration), [
      '0 s',
      '45 s',
      '12 min',
      '2 h 10 min',
      '3 d 4 h',
    ]);
  });

  it('say 100% only at the end', () => {
    assert.deepEqual([formatShare(999, 1000), formatShare(1000, 1000), formatShare(0, 0)], ['99%', '100%', '0%']);
  });

  it('make a progress line', () => {
    assert.equal(
      jobText({ kind: 'rebuild', done: gib, total: 4 * gib }, 110 * 1024 ** 2),
      'rebuild  [#####...............]   25%  1.0 GiB of 4.0 GiB  110 MiB/s  ~28 s left',
    );
  });
});
