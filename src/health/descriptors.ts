import { readdirSync, readlinkSync } from 'node:fs';

/** One descriptor of a process. */
export interface Descriptor {
  /** In /proc. */
  path: string;
  /** What it is open on, as the kernel calls it: a path, `socket:[INODE]`; '' if it was closed meanwhile. */
  target: string;
}

/**
 * What a process has open; null if that can't be told. Reading those links touches no storage, and none of node's threads for files,
 * which may all wait for a store that hangs.
 */
export function descriptorsOf(pid: number): Descriptor[] | null {
  const folder = `/proc/${pid}/fd`;
  try {
    return readdirSync(folder).map((fd) => ({ path: `${folder}/${fd}`, target: targetOf(`${folder}/${fd}`) }));
  } catch {
    return null;
  }
}

function targetOf(link: string): string {
  try {
    return readlinkSync(link);
  } catch {
    return '';
  }
}
