import type { Image } from '../domain/image.ts';
import { runTool } from './run-tool.ts';

/** What changes whenever somebody writes to an image. */
export interface Fingerprint {
  /** To be compared for equality. */
  text: string;
  /** When its content last changed: milliseconds since 1970, by the clock of its file system. */
  writtenAtMs: number;
}

/**
 * An image's inode, size and time of the last change of its content. Null for storage that tells no such thing. The time of the last
 * change of the inode is left out, because libvirt changes owners at start and stop.
 */
export async function fingerprint(
  { source }: Image,
  { deadlineMs }: { deadlineMs: number },
): Promise<Fingerprint | null> {
  if (source.kind !== 'file') return null;
  const outcome = await runTool('stat', ['--dereference', '--format=%i %s %.9Y', '--', source.path], { deadlineMs });
  if (outcome.status !== 0) return null;
  const text = outcome.stdout.trim();
  return { text, writtenAtMs: Number(text.split(' ')[2]) * 1000 };
}
