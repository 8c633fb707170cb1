/**
 * Where one copy of a disk lies, said once. Libvirt's `<disk>` (disk-image.ts), URIs, blockdev-add options and qemu-img
 * arguments (src/storage, one module a kind) are all made from this.
 */
export interface Image {
  source: Source;
  format: ImageFormat;
}

export const imageFormats = ['raw', 'qcow2'] as const;

export type ImageFormat = (typeof imageFormats)[number];

export type Source = FileSource | BlockSource | NbdSource;

export type SourceKind = Source['kind'];

/** A regular file, by absolute path. */
export interface FileSource {
  kind: 'file';
  path: string;
}

/** A host block device, by absolute path. */
export interface BlockSource {
  kind: 'block';
  path: string;
}

export type NbdServer = { host: string; port: number } | { socket: string };

/** An NBD export, over TCP or a unix socket. */
export interface NbdSource {
  kind: 'nbd';
  server: NbdServer;
  /** The export's name; '' is the server's default export. */
  exportName: string;
}

/** NBD's port at IANA, and libvirt's and QEMU's default. */
export const nbdDefaultPort = 10809;

const unprintable = /[\u0000-\u001f\u007f\ufffe\uffff]/u;

/** Why text can't stand in XML, a URI and a log line alike; null if it can. */
export function textProblem(text: string): string | null {
  if (unprintable.test(text)) return 'it has control characters';
  return /\p{Surrogate}/u.test(text) ? 'it is not valid Unicode' : null;
}

/** Why a path can't be an image's, as the end of a sentence; null if it can. Looks at the text only, never at storage. */
export function pathProblem(path: string): string | null {
  if (!path.startsWith('/')) return 'it is not an absolute path';
  if (path.endsWith('/')) return 'it ends in / and so names a folder';
  return textProblem(path);
}

/** Why a string can't name a host, as the end of a sentence; null if it can. IPv6 addresses come without brackets. */
export function hostProblem(host: string): string | null {
  return /^[A-Za-z0-9._-]+$/.test(host) || /^[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*$/.test(host)
    ? null
    : 'it is neither a host name nor an IP address';
}

export function isPort(port: number): boolean {
  return Number.isInteger(port) && port >= 1 && port <= 65535;
}
