import { UsageError } from '../errors.ts';
import type { Source } from '../domain/image.ts';

/**
 * What a kind of storage is, one module a kind. Its form in libvirt's `<disk>` is in src/domain/disk-image.ts, which the
 * domain XML needs too.
 */
export interface StorageKind<S extends Source> {
  /** URI schemes, in lower case without the colon, and how to read each. */
  schemes: Record<string, (uri: string) => S>;
  /** As the user names it; reading it again gives the same source. */
  name(source: S): string;
  /** The same for two sources that, by their text, are the same bytes. */
  key(source: S): string;
  /** What `blockdev-add` and a json: filename want of the protocol's driver, without names and caching. */
  protocol(source: S): ProtocolOptions;
  /** The path at which qemu-img can create such an image; null if storage of this kind is made elsewhere. */
  creatablePath(source: S): string | null;
}

/** BlockdevOptions* of QEMU's qapi/block-core.json, as far as they are used. */
export type ProtocolOptions =
  | { driver: 'file' | 'host_device'; filename: string; aio: 'threads' }
  | {
      driver: 'nbd';
      server: { type: 'inet'; host: string; port: string } | { type: 'unix'; path: string };
      export: string;
      'reconnect-delay': number;
    };

export function badUri(uri: string, why: string, hint: string): UsageError {
  return new UsageError({ code: 'image-uri-invalid', message: `'${uri}' can't be an image: ${why}`, hint });
}

/** Undoes percent-encoding. */
export function decoded(uri: string, text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    throw badUri(uri, 'a % in it does not begin an encoded character', 'write a plain % as %25');
  }
}

/** Percent-encodes all but slashes. */
export function encodedPath(path: string): string {
  return path.split('/').map(encodeURIComponent).join('/');
}
