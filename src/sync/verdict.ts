import { jobEndAfter } from '../qmp/jobs.ts';
import type { Monitor } from '../qmp/monitor.ts';

const deadlineMs = 30_000;

/**
 * Runs a mirror job until it is READY, and ends it: it has read all that it was to read, and flushed its target. Throws if either
 * failed, which HMP's `qemu-io` would swallow (QEMU 7.2 and 10.0: its answer is empty either way).
 */
export async function mirrorVerdict(
  monitor: Monitor,
  what: string,
  { job, from, to, sync }: { job: string; from: string; to: string; sync: 'full' | 'none' },
): Promise<void> {
  const verdict = await monitor.eventAfter(
    what,
    ({ event, data }) => data['device'] === job && (event === 'BLOCK_JOB_READY' || event === 'BLOCK_JOB_COMPLETED'),
    deadlineMs,
    () =>
      monitor.execute('blockdev-mirror', {
        'job-id': job,
        device: from,
        target: to,
        sync,
        'copy-mode': 'background',
        'filter-node-name': `${job}-filter`,
        speed: 0,
      }),
  );
  if (verdict.event === 'BLOCK_JOB_COMPLETED') throw new Error(`${what} failed: ${String(verdict.data['error'])}`);
  await jobEndAfter(monitor, job, deadlineMs, () => monitor.execute('block-job-cancel', { device: job, force: true }));
}
