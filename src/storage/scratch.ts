import { rm } from 'node:fs/promises';
import { join } from 'node:path';

/** What a verify needs of the file system. */
export interface Scratch {
  /** For what the guest overwrites; no file in it keeps its name. */
  folder: string;
  /** Where QEMU's NBD server listens; QEMU itself makes it. */
  socket: string;
}

/** `owner` is a domain's UUID; one verify at a time is made of it. */
export function scratchOf(folder: string, owner: string): Scratch {
  return { folder, socket: join(folder, `virt-cdp-${owner}-verify.sock`) };
}

/** QEMU leaves its socket behind when it is killed. The folder is local: it answers at once. */
export async function removeSocket({ socket }: Scratch): Promise<void> {
  await rm(socket, { force: true });
}
