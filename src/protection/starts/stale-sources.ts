import { readFile } from 'node:fs/promises';
import { join, posix } from 'node:path';
import type { Image } from '../../domain/image.ts';
import { escapeXml } from '../../domain/xml.ts';
import { writeDurably } from '../../store/durable-file.ts';
import { withPath } from '../../storage/path.ts';
import type { DiskRecord, DomainRecord } from '../record.ts';
import { pathsOf, type NameTable } from './name-table.ts';
import { staleImages } from './stale-images.ts';

const fileName = 'stale-sources';

export interface StaleCopy {
  record: DomainRecord;
  disk: DiskRecord;
  image: Image;
  /** What is to be used in its place. */
  current: Image;
}

/** Every image of this host's records that must not be started from. */
export function staleCopies(records: DomainRecord[]): StaleCopy[] {
  return records.flatMap((record) =>
    record.disks.flatMap((disk) => {
      const current = (disk.primary.current ? disk.primary : disk.mirror).image;
      return staleImages(disk).map((image) => ({ record, disk, image, current }));
    }),
  );
}

/**
 * Writes `stale-sources` in the store: a line for each stale copy and each name of it, of texts that the XML of a domain on it
 * contains, with a tab between them. hooks/qemu takes a domain for our business whose XML has the first one, of a path what is behind
 * its last slash, since a path can be written in many ways; all of them whole is a stale copy beyond doubt. `kept` are lines besides.
 */
export async function writeStaleSources(
  storePath: string,
  records: DomainRecord[],
  names: NameTable = new Map(),
  kept: readonly string[] = [],
): Promise<void> {
  const lines = staleCopies(records).flatMap(({ image }) => {
    const paths = pathsOf(names, image);
    const images = paths.length === 0 ? [image] : paths.map((path) => withPath(image, posix.normalize(path)));
    return images.flatMap(linesOf);
  });
  const text = [...new Set([...kept, ...lines])].map((line) => `${line}\n`).join('');
  await writeDurably(join(storePath, fileName), text);
}

/** The lines that were written when records that can't be read now still could be: those that are about none of these records' images. */
export async function linesOfOthers(storePath: string, records: DomainRecord[]): Promise<string[]> {
  const text = await readFile(join(storePath, fileName), 'utf8').catch(() => '');
  const ours = new Set(records.flatMap(imagesOf).flatMap(linesOf));
  return text.split('\n').filter((line) => line !== '' && !ours.has(line));
}

/** As hooks/qemu judges: all texts of the line are in the XML, the first as a whole. */
export function namesStale(line: string, domainXml: string): boolean {
  const [stale = '', ...server] = line.split('\t');
  return domainXml.includes(`'${stale}'`) && server.every((text) => domainXml.includes(text));
}

/** Everything that the record calls a copy, or did. */
export function imagesOf({ disks }: DomainRecord): Image[] {
  return disks.flatMap(({ primary, mirror, retired }) => [primary.image, mirror.image, ...retired]);
}

function linesOf(image: Image): string[] {
  return telltales(image).map((line) => line.map(escapeXml).join('\t'));
}

/** A line for each way to write it. */
function telltales({ source }: Image): string[][] {
  switch (source.kind) {
    case 'file':
    case 'block':
      return [[source.path]];
    case 'nbd': {
      const server = 'socket' in source.server ? source.server.socket : source.server.host;
      return [source.exportName === '' ? [server] : [source.exportName, server]];
    }
    case 'iscsi': {
      const { target, lun, host } = source;
      // Without a LUN libvirt means LUN 0.
      return [[`${target}/${lun}`, host], ...(lun === 0 ? [[target, host]] : [])];
    }
    case 'rbd': {
      const { pool, namespace, image, hosts } = source;
      const name = [pool, ...(namespace === null ? [] : [namespace]), image].join('/');
      return [[name, ...hosts.slice(0, 1).map(({ host }) => host)]];
    }
  }
}
