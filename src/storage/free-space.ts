import { dirname } from 'node:path';
import type { Image } from '../domain/image.ts';
import { CdpError } from '../errors.ts';
import { imageName } from './image.ts';
import { runTool } from './run-tool.ts';

/** So much of a file system stays free: other guests' disks grow on it too. */
const reservedShare = 0.05;

/** As requireSpaceIn, of the folder that an image will be in; what is no file needs no space. */
export async function requireSpace(
  image: Image,
  sizeBytes: number,
  { deadlineMs }: { deadlineMs: number },
): Promise<void> {
  if (image.source.kind !== 'file') return;
  const hint = 'make room, or name another place with --to';
  await requireSpaceIn(dirname(image.source.path), sizeBytes, { what: `'${imageName(image)}'`, hint, deadlineMs });
}

/**
 * Fails if a file of this size, sparse or not, would take the last space of the folder's file system. `what` is what the file
 * is for, `hint` what to do.
 * @throws CdpError `space-short`, with the figures; `folder-missing`; `tool-missing`.
 */
export async function requireSpaceIn(
  folder: string,
  sizeBytes: number,
  { what, hint, deadlineMs }: { what: string; hint: string; deadlineMs: number },
): Promise<void> {
  const outcome = await runTool('df', ['--block-size=1', '--output=size,avail', '--', folder], { deadlineMs });
  const [size, free] = (outcome.stdout.trim().split('\n')[1] ?? '').trim().split(/\s+/).map(Number);
  if (outcome.status !== 0 || size === undefined || free === undefined) {
    throw new CdpError({
      code: 'folder-missing',
      message: `the free space of '${folder}' could not be read: ${outcome.stderr.trim()}`,
    });
  }
  const reserved = Math.ceil(size * reservedShare);
  if (free - sizeBytes >= reserved) return;
  throw new CdpError({
    code: 'space-short',
    message: `${what} needs ${sizeBytes} bytes; '${folder}' has ${free} free, of which ${reserved} must stay free`,
    hint,
  });
}
