/**
 * Where one copy of a disk lies, said once. Libvirt's `<disk>` (disk-image.ts), URIs, blockdev-add options and qemu-img
 * arguments (src/storage, one module a kind) are all made from this.
 */
export interface Image {
  source: Source;
  format: ImageFormat;
  /** LUKS, by libvirt's `<encryption>`: the format's content is encrypted, qcow2's in itself, raw as a LUKS volume. */
  encryption?: { secret: SecretName };
}

export const imageFormats = ['raw', 'qcow2'] as const;

export type ImageFormat = (typeof imageFormats)[number];

export type Source = FileSource | BlockSource | NbdSource | IscsiSource | RbdSource;

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

/** `tls`: the server is spoken to by TLS alone, with the certificates of libvirt's qemu.conf. */
export type NbdServer = { host: string; port: number; tls?: true } | { socket: string };

/** An NBD export, over TCP or a unix socket. */
export interface NbdSource {
  kind: 'nbd';
  server: NbdServer;
  /** The export's name; '' is the server's default export. */
  exportName: string;
}

/** A LUN of an iSCSI target, reached by QEMU's own initiator. */
export interface IscsiSource {
  kind: 'iscsi';
  /** The portal. */
  host: string;
  port: number;
  /** The target's name, e.g. `iqn.2026-01.org.example:web1`. */
  target: string;
  lun: number;
  /** The name under which the initiator presents itself; null for QEMU's own. */
  initiator: string | null;
  /** CHAP. */
  login: Login | null;
}

/** An image of a Ceph pool. */
export interface RbdSource {
  kind: 'rbd';
  pool: string;
  /** Null for the pool's default namespace. */
  namespace: string | null;
  image: string;
  /** The monitors; none if the client's configuration names them. A port is null for Ceph's own choice. */
  hosts: { host: string; port: number | null }[];
  /** The client's configuration file, by absolute path; null for librbd's default. */
  config: string | null;
  /** cephx, with the name after `client.` */
  login: Login | null;
}

/** Who logs in, and where libvirt keeps the password. */
export interface Login {
  username: string;
  secret: SecretName;
}

/** What a libvirt secret is for; a usage is unique among those of one type. */
export type SecretType = 'volume' | 'ceph' | 'iscsi' | 'tls';

/** A secret of libvirt's store, as a `<secret>` element names it. The value is in libvirt's keeping alone. */
export type SecretName = { uuid: string } | { usage: string };

/** iSCSI's port at IANA, and libvirt's default. */
export const iscsiDefaultPort = 3260;

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

/** Why a string can't be an iSCSI name (RFC 3720, 3.2.6: iqn., eui. or naa.), as the end of a sentence; null if it can. */
export function iscsiNameProblem(name: string): string | null {
  if (Buffer.byteLength(name) > 223) return 'it is longer than 223 bytes';
  return /^(?:iqn\.\d{4}-\d{2}\.|eui\.|naa\.)[^\s/?#\p{C}]+$/u.test(name)
    ? null
    : "it does not begin with 'iqn.YYYY-MM.', 'eui.' or 'naa.'";
}

/** Why a string can't name a Ceph pool, namespace or image, as the end of a sentence; null if it can. */
export function rbdNameProblem(name: string): string | null {
  if (name === '') return 'it is empty';
  // '@' would name a snapshot.
  return /[/@]/.test(name) ? "it has a '/' or an '@'" : textProblem(name);
}

/** SAM's largest LUN in the simple forms that libiscsi speaks. */
export function isLun(lun: number): boolean {
  return Number.isInteger(lun) && lun >= 0 && lun <= 16383;
}

export function isPort(port: number): boolean {
  return Number.isInteger(port) && port >= 1 && port <= 65535;
}
