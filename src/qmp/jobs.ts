import type { Monitor, QmpEvent } from './monitor.ts';

/** How a block job ended. */
export type JobEnd = { ok: true } | { ok: false; error: string };

/**
 * Runs `trigger`, which starts or ends the job, and waits for the job's end. A mirror that is cancelled after READY
 * without force ends with BLOCK_JOB_COMPLETED (QEMU, block/mirror.c).
 * @throws QmpTimeoutError past the deadline; what `trigger` throws.
 */
export async function jobEndAfter(
  monitor: Monitor,
  jobId: string,
  deadlineMs: number,
  trigger: () => Promise<unknown>,
): Promise<JobEnd> {
  const end = await monitor.eventAfter(
    `the end of job ${jobId}`,
    (event) => event.data['device'] === jobId && isJobEnd(event),
    deadlineMs,
    trigger,
  );
  if (end.event === 'BLOCK_JOB_CANCELLED') return { ok: false, error: 'cancelled' };
  return typeof end.data['error'] === 'string' ? { ok: false, error: end.data['error'] } : { ok: true };
}

function isJobEnd(event: QmpEvent): boolean {
  return event.event === 'BLOCK_JOB_COMPLETED' || event.event === 'BLOCK_JOB_CANCELLED';
}
