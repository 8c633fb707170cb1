/**
 * Where one copy of a disk lies, said once. URIs, libvirt `<disk>` XML, blockdev-add options and qemu-img arguments
 * are all made from this, one module a kind.
 */
export interface Image {
  source: Source;
  format: ImageFormat;
}

export type ImageFormat = 'raw' | 'qcow2';

export type Source = FileSource | BlockSource | NbdSource;

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

/** An NBD export, over TCP or a unix socket. */
export interface NbdSource {
  kind: 'nbd';
  server: { host: string; port: number } | { socket: string };
  /** The export's name; '' is the server's default export. */
  exportName: string;
}
