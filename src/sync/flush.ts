import { QmpError } from '../qmp/errors.ts';
import { jobEndAfter } from '../qmp/jobs.ts';
import type { Monitor } from '../qmp/monitor.ts';
import { cancelSync, findJob } from './jobs.ts';

const flushDeadlineMs = 30_000;

/**
 * Flushes a node, and fails if the flush failed. HMP's `qemu-io NODE flush` swallows the error (QEMU 7.2 and 10.0: its answer is
 * empty either way), but a mirror job flushes its target before it is READY and ends with the error if that fails. So a
 * job is run that copies nothing (`sync=none`) from `nothing`, an idle null node of the same size. One that was left by an agent
 * that died meanwhile, or did not end in time, is given up first.
 */
export async function flushNode(monitor: Monitor, job: string, nothing: string, node: string): Promise<void> {
  try {
    await runFlush(monitor, job, nothing, node);
  } catch (error) {
    if (!(error instanceof QmpError && (await findJob(monitor, job)) !== undefined)) throw error;
    await cancelSync(monitor, job);
    await runFlush(monitor, job, nothing, node);
  }
}

async function runFlush(monitor: Monitor, job: string, nothing: string, node: string): Promise<void> {
  const verdict = await monitor.eventAfter(
    `the flush of ${node}`,
    ({ event, data }) => data['device'] === job && (event === 'BLOCK_JOB_READY' || event === 'BLOCK_JOB_COMPLETED'),
    flushDeadlineMs,
    () =>
      monitor.execute('blockdev-mirror', {
        'job-id': job,
        device: nothing,
        target: node,
        sync: 'none',
        'copy-mode': 'background',
        'filter-node-name': `${job}-filter`,
        speed: 0,
      }),
  );
  if (verdict.event === 'BLOCK_JOB_COMPLETED') {
    throw new Error(`the flush of ${node} failed: ${String(verdict.data['error'])}`);
  }
  await jobEndAfter(monitor, job, flushDeadlineMs, () =>
    monitor.execute('block-job-cancel', { device: job, force: true }),
  );
}
