import { descriptorsOf } from './descriptors.ts';

/** The sockets that a process has open, by what the kernel calls them; null if that can't be told. A new connection has another name. */
export function openSockets(pid: number): string[] | null {
  return descriptorsOf(pid)?.flatMap(({ target }) => /^socket:\[(\d+)\]$/.exec(target)?.[1] ?? []) ?? null;
}
