import { QmpError } from '../qmp/errors.ts';
import type { Monitor } from '../qmp/monitor.ts';
import { cancelSync, findJob } from './jobs.ts';
import { mirrorVerdict } from './verdict.ts';

/**
 * Flushes a node, and fails if the flush failed. A job is run that copies nothing (`sync=none`) from `nothing`, an idle null node of the
 * same size. One that was left by an agent that died meanwhile, or did not end in time, is given up first.
 */
export async function flushNode(monitor: Monitor, job: string, nothing: string, node: string): Promise<void> {
  const flush = (): Promise<void> =>
    mirrorVerdict(monitor, `the flush of ${node}`, { job, from: nothing, to: node, sync: 'none' });
  try {
    await flush();
  } catch (error) {
    if (!(error instanceof QmpError && (await findJob(monitor, job)) !== undefined)) throw error;
    await cancelSync(monitor, job);
    await flush();
  }
}
