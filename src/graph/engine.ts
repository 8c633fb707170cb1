import { setTimeout as sleep } from 'node:timers/promises';
import { QmpError } from '../qmp/errors.ts';
import type { BlockJob } from '../qmp/commands.ts';
import type { Monitor } from '../qmp/monitor.ts';
import { cancelSync, findJob } from '../sync/jobs.ts';
import { diskNames } from './names.ts';
import { closeNodes } from './surgery.ts';

/**
 * What the two-copy writer is made of. `quorum`: a node that acknowledges a write or flush when both copies have it. `mirror`: a
 * write-blocking mirror job's filter, for QEMU without quorum: it acknowledges what the primary has, and the job's state says whether the
 * mirror has all of it too.
 */
export const engines = ['quorum', 'mirror'] as const;

export type Engine = (typeof engines)[number];

/** How long is waited for a job that has nothing to copy. */
const jobDeadlineMs = 30_000;

/** Puts the two-copy writer over copies that are equal; nobody writes meanwhile. */
export async function compose(monitor: Monitor, dev: string, primaryTop: string, engine: Engine): Promise<void> {
  await (engine === 'quorum' ? composeQuorum(monitor, dev, primaryTop) : composeMirror(monitor, dev, primaryTop));
}

/** The guest stands still until the job has begun to copy. */
const beginDeadlineMs = 1_000;

/**
 * Has a mirror job copy everything and write to both copies meanwhile, under a device that keeps its node. It is begun while the guest
 * stands still: QEMU before 8.0 crashes over a write from an I/O thread in that moment, and later ones can miss a write until the job's
 * preparations end (block/mirror.c: mirror_run gives the filter its job after mirror_dirty_init; mended in 10.0.9 and 10.2.2).
 * @throws Error, without a job left, when the guest runs, or may have written something that such a QEMU missed.
 */
export async function composeCopying(
  monitor: Monitor,
  dev: string,
  primaryTop: string,
  bytesPerS: number,
): Promise<void> {
  const { pairJob } = diskNames(dev);
  let stoodStill = true;
  const unsubscribe = monitor.onEvent(({ event }) => (stoodStill &&= event !== 'RESUME'));
  try {
    if ((await monitor.execute('query-status', {})).running) throw new Error('somebody has resumed the guest');
    await startMirrorJob(monitor, dev, primaryTop, { sync: 'full', speed: bytesPerS });
    const hasBegun = await begins(monitor, pairJob);
    stoodStill &&= !(await monitor.execute('query-status', {})).running;
    if ((hasBegun && stoodStill) || !(await missesWrites(monitor))) return;
    await cancelSync(monitor, pairJob);
    throw new Error(
      hasBegun
        ? 'somebody has resumed the guest'
        : 'this QEMU can miss writes while a mirror job prepares its target, which takes too long here to pause the guest for it',
    );
  } finally {
    unsubscribe();
  }
}

/** Its length is known when it has begun to copy (block/mirror.c: mirror_run). */
async function begins(monitor: Monitor, job: string): Promise<boolean> {
  const deadline = Date.now() + beginDeadlineMs;
  for (;;) {
    const found = await findJob(monitor, job);
    if (found === undefined) throw new Error(`the job ${job} ended at once: a copy can not be read or written`);
    if (found.len > 0 || found.ready) return true;
    if (Date.now() > deadline) return false;
    await sleep(10);
  }
}

async function missesWrites(monitor: Monitor): Promise<boolean> {
  const { major, minor, micro } = (await monitor.execute('query-version', {})).qemu;
  if (major !== 10) return major === 8 || major === 9;
  return (minor === 0 && micro < 9) || minor === 1 || (minor === 2 && micro < 2);
}

/**
 * Ends a pair's mirror job on the mirror, which is flushed, and which the device has from then on: there is no moment in between. QEMU
 * aborts if a stop overlaps that, so the guest has to stand still already.
 */
export async function promote(monitor: Monitor, dev: string): Promise<void> {
  const { pairJob } = diskNames(dev);
  if ((await monitor.execute('query-status', {})).running) throw new Error('somebody has resumed the guest');
  const end = await monitor.eventAfter(
    `the end of the mirror job ${pairJob}`,
    ({ event, data }) => data['device'] === pairJob && ['BLOCK_JOB_COMPLETED', 'BLOCK_JOB_ERROR'].includes(event),
    jobDeadlineMs,
    () => monitor.execute('block-job-complete', { device: pairJob }),
  );
  if (end.event === 'BLOCK_JOB_ERROR' || end.data['error'] !== undefined)
    throw new Error('the mirror could not be flushed');
}

/** Takes the two-copy writer away; what was its device's is the primary's again if that is a mirror job's. */
export async function dissolve(monitor: Monitor, dev: string): Promise<void> {
  const { pair, pairJob } = diskNames(dev);
  await cancelSync(monitor, pairJob);
  await closeNodes(monitor, [pair]);
}

/**
 * A write-blocking mirror job acknowledges no write before its target has answered. A target's error pauses it, and it is never
 * resumed: as long as it is ready and had no error, the mirror has everything.
 */
export function isInSync(job: BlockJob | undefined): boolean {
  return job?.ready === true && isWell(job) && job['actively-synced'] !== false;
}

/** Nothing has failed under a mirror job. */
export function isWell(job: BlockJob): boolean {
  return !job.paused && job['io-status'] === 'ok';
}

/** Whether this QEMU has the quorum driver. Its schema names it in any case, so it is asked for a quorum that can't be. */
export async function hasQuorum(monitor: Monitor): Promise<boolean> {
  try {
    await monitor.execute('blockdev-add', {
      driver: 'quorum',
      'node-name': 'cdp-no-quorum',
      children: [],
      'vote-threshold': 1,
    });
  } catch (error) {
    if (!(error instanceof QmpError)) throw error;
    return /number of provided children/i.test(error.description);
  }
  await closeNodes(monitor, ['cdp-no-quorum']);
  return true;
}

/**
 * Every child must succeed (`vote-threshold` 2): with 1, a read after a failed write would return the first child's old data
 * without an error. Reads come from the primary, and from the mirror where that fails.
 */
async function composeQuorum(monitor: Monitor, dev: string, primaryTop: string): Promise<void> {
  const { pair, mirror } = diskNames(dev);
  await monitor.execute('blockdev-add', {
    driver: 'quorum',
    'node-name': pair,
    children: [primaryTop, mirror],
    'vote-threshold': 2,
    'read-pattern': 'fifo',
  });
}

/** With nothing to copy the job is ready when it has flushed the mirror. */
async function composeMirror(monitor: Monitor, dev: string, primaryTop: string): Promise<void> {
  const { pairJob } = diskNames(dev);
  const begun = await monitor.eventAfter(
    `the mirror job ${pairJob} to be ready`,
    ({ event, data }) =>
      data['device'] === pairJob && ['BLOCK_JOB_READY', 'BLOCK_JOB_ERROR', 'BLOCK_JOB_COMPLETED'].includes(event),
    jobDeadlineMs,
    () => startMirrorJob(monitor, dev, primaryTop, { sync: 'none', speed: 0 }),
  );
  if (begun.event !== 'BLOCK_JOB_READY') throw new Error(`the mirror could not be flushed: ${begun.event}`);
}

/** An error pauses it for good: it is never resumed. */
async function startMirrorJob(
  monitor: Monitor,
  dev: string,
  primaryTop: string,
  { sync, speed }: { sync: 'none' | 'full'; speed: number },
): Promise<void> {
  const { pair, pairJob, mirror } = diskNames(dev);
  await monitor.execute('blockdev-mirror', {
    'job-id': pairJob,
    device: primaryTop,
    target: mirror,
    sync,
    'copy-mode': 'write-blocking',
    'filter-node-name': pair,
    'on-source-error': 'stop',
    'on-target-error': 'stop',
    speed,
  });
}
