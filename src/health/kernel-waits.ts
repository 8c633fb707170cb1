import { readdirSync, readFileSync } from 'node:fs';

/**
 * The threads of a process that wait in the kernel and can't be interrupted, as for a file or device: each with how often it has run, so
 * that one that is there again has waited all the time. Reads nothing that a storage could hold up.
 */
export function kernelWaits(pid: number | null): string[] {
  if (pid === null) return [];
  const folder = `/proc/${pid}/task`;
  try {
    return readdirSync(folder).flatMap((thread) => {
      const state = /^.*\) (\w)/s.exec(readFileSync(`${folder}/${thread}/stat`, 'utf8'))?.[1];
      return state === 'D' ? `${thread}: ${readFileSync(`${folder}/${thread}/schedstat`, 'utf8').trim()}` : [];
    });
  } catch {
    // A thread has ended meanwhile: then it did not wait.
    return [];
  }
}
