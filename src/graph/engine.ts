import { QmpError } from '../qmp/errors.ts';
import type { BlockJob } from '../qmp/commands.ts';
import type { Monitor } from '../qmp/monitor.ts';
import { cancelSync } from '../sync/jobs.ts';
import { diskNames } from './names.ts';
import { closeNodes } from './surgery.ts';

/**
 * What the two-copy writer is made of. `quorum`: a node that acknowledges a write or flush when both copies have it. `mirror`: a
 * write-blocking mirror job's filter, for QEMU without quorum: it acknowledges what the primary has, and the job's state says whether the
 * mirror has all of it too.
 */
export const engines = ['quorum', 'mirror'] as const;

export type Engine = (typeof engines)[number];

/** Puts the two-copy writer over copies that are equal; nobody writes meanwhile. */
export async function compose(monitor: Monitor, dev: string, primaryTop: string, engine: Engine): Promise<void> {
  await (engine === 'quorum' ? composeQuorum(monitor, dev, primaryTop) : composeMirror(monitor, dev, primaryTop));
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
  return job?.ready === true && !job.paused && job['io-status'] === 'ok' && job['actively-synced'] !== false;
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

const readyDeadlineMs = 30_000;

/** With nothing to copy the job is ready when it has flushed the mirror. An error pauses it for good: it is never resumed. */
async function composeMirror(monitor: Monitor, dev: string, primaryTop: string): Promise<void> {
  const { pair, pairJob, mirror } = diskNames(dev);
  const begun = await monitor.eventAfter(
    `the mirror job ${pairJob} to be ready`,
    ({ event, data }) =>
      data['device'] === pairJob && ['BLOCK_JOB_READY', 'BLOCK_JOB_ERROR', 'BLOCK_JOB_COMPLETED'].includes(event),
    readyDeadlineMs,
    () =>
      monitor.execute('blockdev-mirror', {
        'job-id': pairJob,
        device: primaryTop,
        target: mirror,
        sync: 'none',
        'copy-mode': 'write-blocking',
        'filter-node-name': pair,
        'on-source-error': 'stop',
        'on-target-error': 'stop',
        speed: 0,
      }),
  );
  if (begun.event !== 'BLOCK_JOB_READY') throw new Error(`the mirror could not be flushed: ${begun.event}`);
}
