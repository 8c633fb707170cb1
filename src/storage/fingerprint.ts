import type { Image } from '../domain/image.ts';
import { runTool } from './run-tool.ts';

/**
 * What changes whenever somebody writes to an image: inode, size and time of the last change of its content. Null for storage that
 * tells no such thing. The time of the last change of the inode is left out, because libvirt changes owners at start and stop.
 */
export async function fingerprint({ source }: Image, { deadlineMs }: { deadlineMs: number }): Promise<string | null> {
  if (source.kind !== 'file') return null;
  const outcome = await runTool('stat', ['--dereference', '--format=%i %s %y', '--', source.path], { deadlineMs });
  return outcome.status === 0 ? outcome.stdout.trim() : null;
}
