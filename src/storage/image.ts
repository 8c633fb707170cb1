import type { Image, ImageFormat, Source, SourceKind } from '../domain/image.ts';
import { blockKind } from './block.ts';
import { fileKind, isDevicePath, usablePath } from './file.ts';
import type { Peer, StorageKind } from './kind.ts';
import { iscsiKind } from './iscsi.ts';
import { nbdKind } from './nbd.ts';
import { rbdKind } from './rbd.ts';
import { badUri } from './uri.ts';

/** The types of src/domain/image.ts, for those that only deal with storage. */
export type { BlockSource, FileSource, Image, ImageFormat, NbdSource, Source, SourceKind } from '../domain/image.ts';

const kinds: { [K in SourceKind]: StorageKind<Extract<Source, { kind: K }>> } = {
  file: fileKind,
  block: blockKind,
  nbd: nbdKind,
  iscsi: iscsiKind,
  rbd: rbdKind,
};

/** The module for a source of any kind. */
export function kindOf(source: Source): StorageKind<Source> {
  return kinds[source.kind];
}

const schemes = new Map(Object.values(kinds).flatMap((kind) => Object.entries<(uri: string) => Source>(kind.schemes)));

/**
 * Reads what names an image: an absolute path (below /dev a block device, else a file), taken as it is, or a URI.
 * The format is the one asked for, else qcow2 for a path that ends in .qcow2, else raw: it is never probed, since a
 * guest can write any header it likes.
 * @throws UsageError `image-uri-invalid`.
 */
export function parseImageUri(uri: string, options: { format?: ImageFormat } = {}): Image {
  const source = parseSource(uri);
  const suffix = 'path' in source && source.path.endsWith('.qcow2') ? 'qcow2' : 'raw';
  return { source, format: options.format ?? suffix };
}

function parseSource(uri: string): Source {
  if (uri.startsWith('/')) return { kind: isDevicePath(uri) ? 'block' : 'file', path: usablePath(uri, uri) };
  const hint = `give an absolute path, or a URI of one of ${[...schemes.keys()].map((known) => `${known}:`).join(', ')}`;
  const scheme = /^([a-z][a-z0-9+._-]*):/i.exec(uri)?.[1];
  if (scheme === undefined) throw badUri(uri, 'it is neither an absolute path nor a URI', hint);
  const parse = schemes.get(scheme.toLowerCase());
  if (parse === undefined) throw badUri(uri, `the scheme '${scheme}:' is not supported`, hint);
  return parse(uri);
}

/** As the user names it, in status, records and events: parseImageUri gives a source of the same storage for it. */
export function imageName(image: Image): string {
  return kindOf(image.source).name(image.source);
}

/** Where QEMU's one connection to the image leads; null where it has none of its own, or several. */
export function peerOf({ source }: Image): Peer | null {
  return kindOf(source).peer?.(source) ?? null;
}

/** QEMU's own driver waits without end for storage that is gone, and can't be made to let go of it. */
export function waitsWithoutEnd({ source }: Image): boolean {
  return source.kind === 'iscsi';
}

/**
 * Whether two images are the same bytes, as far as their text tells: paths are cleaned of `.`, `..` and double slashes,
 * all loopback addresses are one host. Symbolic links and device aliases want resolveImage first; one export reached
 * both by TCP and by a unix socket is not recognized.
 */
export function sameStorage(a: Image, b: Image): boolean {
  return kindOf(a.source).key(a.source) === kindOf(b.source).key(b.source);
}
