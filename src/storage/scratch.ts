import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { CdpError } from '../errors.ts';
import { runTool } from './run-tool.ts';

/**
 * What a verify needs besides QEMU, as files that QEMU has to be able to open: the only place that knows where they are.
 * `owner` is a domain's UUID; one verify at a time is made of it.
 */
export interface Scratch {
  folder: string;
  /** Where QEMU's NBD server listens. */
  socket: string;
  overlay: Record<'primary' | 'mirror', string>;
}

export function scratchOf(folder: string, owner: string): Scratch {
  const path = (part: string): string => join(folder, `virt-cdp-${owner}-${part}`);
  return {
    folder,
    socket: path('verify.sock'),
    overlay: { primary: path('primary.qcow2'), mirror: path('mirror.qcow2') },
  };
}

/** The socket that belongs to an overlay. */
export function socketBeside(overlayPath: string): string {
  return overlayPath.replace(/(primary|mirror)\.qcow2$/, 'verify.sock');
}

export async function createOverlays({ overlay }: Scratch, sizeBytes: number, deadlineMs: number): Promise<void> {
  await removeScratch([overlay.primary, overlay.mirror]);
  for (const path of [overlay.primary, overlay.mirror]) {
    // What the guest has written is nobody else's to read.
    const command = 'umask 077; exec qemu-img create -q -f qcow2 "$1" "$2"';
    const outcome = await runTool('sh', ['-c', command, 'sh', path, String(sizeBytes)], { deadlineMs });
    if (outcome.status === 0) continue;
    throw new CdpError({
      code: 'scratch-unusable',
      message: `'${path}' could not be created: ${outcome.deadlinePassed ? 'it takes too long' : outcome.stderr.trim()}`,
      hint: 'name another folder by verify.scratch',
    });
  }
}

/** The scratch folder is local: it answers at once. */
export async function removeScratch(paths: string[]): Promise<void> {
  for (const path of paths) await rm(path, { force: true });
}
