import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { runTool } from '../storage/run-tool.ts';

const deadlineMs = 5_000;

/**
 * The threads of a process that wait in the kernel and can't be interrupted, as for a file or device: each with how often it has run, so
 * that one that is there again has waited all the time. Reads nothing that a storage could hold up.
 */
export function kernelWaits(pid: number | null, proc = '/proc'): string[] {
  if (pid === null) return [];
  const folder = `${proc}/${pid}/task`;
  const threads = orNull(() => readdirSync(folder)) ?? [];
  return threads.flatMap((thread) => orNull(() => waitOf(`${folder}/${thread}`, thread)) ?? []);
}

function waitOf(folder: string, thread: string): string | null {
  const state = /^.*\) (\w)/s.exec(readFileSync(`${folder}/stat`, 'utf8'))?.[1];
  return state === 'D' ? `${thread}: ${readFileSync(`${folder}/schedstat`, 'utf8').trim()}` : null;
}

/**
 * Whether any of these waits is one at this file or block device. The others may be for anything that the process has open; of that
 * nothing is touched, for it may hang.
 */
export async function waitsAt(pid: number, waits: string[], path: string, proc = '/proc'): Promise<boolean> {
  const open = waits.map((wait) => orNull(() => calledWith(`${proc}/${pid}`, wait)));
  const still = kernelWaits(pid, proc);
  const awaited = open.filter((target, index) => target !== null && still.includes(waits[index] ?? ''));
  if (awaited.length === 0) return false;
  const { stdout } = await runTool('realpath', ['--zero', '--', path], { deadlineMs });
  return awaited.includes(stdout.replace(/\0$/, ''));
}

/**
 * The path that a thread's call is for: what is read, written and flushed is its first argument (proc_pid_syscall(5)). That of io_uring's
 * and native AIO's is none.
 */
function calledWith(folder: string, wait: string): string | null {
  const [thread = ''] = wait.split(':');
  const [call, descriptor] = readFileSync(`${folder}/task/${thread}/syscall`, 'utf8').split(' ');
  return Number(call) >= 0 ? readlinkSync(`${folder}/fd/${Number(descriptor)}`) : null;
}

/** Of a thread that has ended meanwhile nothing is known: then it does not wait. */
function orNull<T>(read: () => T): T | null {
  try {
    return read();
  } catch {
    return null;
  }
}
