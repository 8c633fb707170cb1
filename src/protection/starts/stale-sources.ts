import { join } from 'node:path';
import type { Source } from '../../domain/image.ts';
import { writeDurably } from '../../store/durable-file.ts';
import type { DomainRecord } from '../record.ts';

/**
 * Writes `stale-sources` in the store: a line for each stale copy of this host, a text that the XML of any domain on it contains.
 * hooks/qemu looks for them, so that a domain that knows nothing of us is not started from one either.
 */
export async function writeStaleSources(storePath: string, records: DomainRecord[]): Promise<void> {
  const stale = records.flatMap(({ disks }) =>
    disks.flatMap(({ primary, mirror, retired }) => [
      ...[primary, mirror].flatMap(({ current, image }) => (current ? [] : [image])),
      ...retired,
    ]),
  );
  const lines = stale.map(({ source }) => escapeXml(telltale(source)));
  await writeDurably(join(storePath, 'stale-sources'), lines.map((line) => `${line}\n`).join(''));
}

function telltale(source: Source): string {
  switch (source.kind) {
    case 'file':
    case 'block':
      return source.path;
    case 'nbd':
      return 'socket' in source.server ? source.server.socket : source.server.host;
  }
}

/** As libvirt writes attributes (util/virbuffer.c: virBufferEscapeString). */
function escapeXml(text: string): string {
  const entities: Record<string, string> = { '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;', "'": '&apos;' };
  return text.replace(/[&<>"']/g, (character) => entities[character] ?? character);
}
