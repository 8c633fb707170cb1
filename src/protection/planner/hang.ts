import type { Observation } from '../observation.ts';

/**
 * Whether something in use does not answer. Whatever pauses the guest, ends a job or closes a node waits for all requests, and QEMU's
 * monitor with it, for ever if they never end. A guest that is paused has none that doesn't.
 */
export function mustNotWait({ run, disks }: Observation): boolean {
  return run === 'running' && disks.some(({ hang, silent }) => hang !== null || silent.length > 0);
}
