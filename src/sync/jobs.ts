import { QmpError } from '../qmp/errors.ts';
import { jobEndAfter } from '../qmp/jobs.ts';
import type { BlockJob } from '../qmp/commands.ts';
import type { Monitor } from '../qmp/monitor.ts';

/** Which nodes a sync runs between, the job's name (its filter node has the same), and how fast it may be. */
export interface SyncPath {
  job: string;
  from: string;
  to: string;
  /** 0 is unlimited. */
  maxBytesPerS: number;
}

/** A whole pass or the end of a full sync may not take longer than this while the domain waits for it. */
const jobEndDeadlineMs = 30_000;

/**
 * What a full sync reads at once. A guest's request waits behind it; with QEMU's own 10 MiB (block/mirror.c: DEFAULT_MIRROR_BUF_SIZE) twice as
 * long, and the sync is no faster (docs/benchmark.md).
 */
const inFlightBytes = 4 * 1024 * 1024;

/**
 * Starts a copy of everything. It is a mirror job in background mode, so that a slow, hanging or failing target never slows
 * or fails the guest's writes; what the guest writes meanwhile is recorded by a tracking bitmap besides.
 */
export async function startFullSync(monitor: Monitor, { job, from, to, maxBytesPerS }: SyncPath): Promise<void> {
  await monitor.execute('blockdev-mirror', {
    'job-id': job,
    device: from,
    target: to,
    sync: 'full',
    'copy-mode': 'background',
    'buf-size': inFlightBytes,
    'filter-node-name': job,
    speed: maxBytesPerS,
  });
}

/**
 * Starts a copy of everything as it is now: what the guest overwrites later is copied before. Its writes wait for the target
 * meanwhile, and fail with it. The job stays when it has ended, so that whoever looks later knows how.
 */
export async function startSnapshotSync(monitor: Monitor, { job, from, to, maxBytesPerS }: SyncPath): Promise<void> {
  await monitor.execute('blockdev-backup', {
    'job-id': job,
    device: from,
    target: to,
    sync: 'full',
    'auto-dismiss': false,
    'filter-node-name': job,
    speed: maxBytesPerS,
  });
}

/** Forgets a job that has ended and stayed. */
export async function dismissSync(monitor: Monitor, job: string): Promise<void> {
  await monitor.execute('job-dismiss', { id: job });
}

/** 0 is unlimited. A job that has ended meanwhile needs no speed. */
export async function setSpeed(monitor: Monitor, job: string, bytesPerS: number): Promise<void> {
  try {
    await monitor.execute('block-job-set-speed', { device: job, speed: bytesPerS });
  } catch (error) {
    // blockdev.c: find_block_job_locked
    if (!(error instanceof QmpError && error.errorClass === 'DeviceNotActive')) throw error;
  }
}

/** Ends a full sync that is ready: the target is then whole, but for what the tracking bitmap recorded. */
export async function endFullSync(monitor: Monitor, job: string): Promise<void> {
  const end = await jobEndAfter(monitor, job, jobEndDeadlineMs, () =>
    monitor.execute('block-job-cancel', { device: job, force: false }),
  );
  if (!end.ok) throw new Error(`the full sync ${job} did not end well: ${end.error}`);
}

/** Gives up a sync, if there is one; what it copied so far is of no use by itself. */
export async function cancelSync(monitor: Monitor, job: string): Promise<void> {
  const found = await findJob(monitor, job);
  if (found === undefined) return;
  if (found.status !== 'concluded') {
    await jobEndAfter(monitor, job, jobEndDeadlineMs, () =>
      monitor.execute('block-job-cancel', { device: job, force: true }),
    );
  }
  if ((await findJob(monitor, job)) !== undefined) await dismissSync(monitor, job);
}

/** Starts to copy the blocks that `bitmap` names; those that were copied leave it if the whole pass succeeds. */
export async function startDelta(
  monitor: Monitor,
  { job, from, to, maxBytesPerS }: SyncPath,
  bitmap: string,
): Promise<void> {
  await monitor.execute('blockdev-backup', {
    'job-id': job,
    device: from,
    target: to,
    sync: 'bitmap',
    bitmap,
    'bitmap-mode': 'on-success',
    'filter-node-name': job,
    speed: maxBytesPerS,
  });
}

/** The last, short pass while the domain is parked. */
export async function finishDelta(monitor: Monitor, path: SyncPath, bitmap: string): Promise<void> {
  const end = await jobEndAfter(monitor, path.job, jobEndDeadlineMs, () =>
    startDelta(monitor, { ...path, maxBytesPerS: 0 }, bitmap),
  );
  if (!end.ok) throw new Error(`the last delta of ${path.job} failed: ${end.error}`);
}

export async function findJob(monitor: Monitor, job: string): Promise<BlockJob | undefined> {
  return (await monitor.execute('query-block-jobs', {})).find(({ device }) => device === job);
}
