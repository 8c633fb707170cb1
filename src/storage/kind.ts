import type { Source } from '../domain/image.ts';
import type { NeededSecret } from './secrets.ts';

/** How an image is opened, beyond what it is. */
export interface Access {
  /** Begins the IDs of the QEMU objects that hold its secrets. */
  objects: string;
  /** For how long a request may go unanswered, in milliseconds, as far as the protocol's driver can be told. */
  timeoutMs: number;
  /** The file with the settings of Ceph's client; null for an image that needs none. */
  cephConfig: string | null;
}

/** The ID of the object with an image's secret for this purpose, or with the certificates (`tls`). */
export function secretId({ objects }: Access, purpose: string): string {
  return `${objects}-${purpose}`;
}

/**
 * What a kind of storage is, one module a kind. Its form in libvirt's `<disk>` is in src/domain/disk-image.ts, which the
 * domain XML needs too.
 */
export interface StorageKind<S extends Source> {
  /** URI schemes, in lower case without the colon, and how to read each. */
  schemes: Record<string, (uri: string) => S>;
  /** As the user names it; reading it again gives a source of the same key, without what a URI can't say. */
  name(source: S): string;
  /** The same for two sources that, by their text, are the same bytes. */
  key(source: S): string;
  /** The secrets without which it can't be opened, by what they are for. */
  secrets(source: S): Record<string, NeededSecret>;
  /** What answers for it and for others too, and hangs with them all: a server, a device, a file system. */
  backend(source: S): string;
  /** Where QEMU's one connection to it leads; absent where it has none of its own, or several. */
  peer?(source: S): Peer;
  /** It is reached by TLS: QEMU needs the client's certificates as an object. */
  usesTls?(source: S): boolean;
  /** What `blockdev-add` and a json: filename want of the protocol's driver, without names and caching. */
  protocol(source: S, access: Access): ProtocolOptions;
  /** How qemu-img creates such an image; null if storage of this kind is made elsewhere. */
  creation(source: S, access: Access): Creation | null;
}

/** Where a connection leads: to a TCP port, or to a unix socket. */
export type Peer = { port: number } | 'unix';

export interface Creation {
  /** As `qemu-img create` takes it. */
  filename: string;
  /** For its -o, besides those of the format. */
  options: string[];
  /** The path of a file, which qemu-img would overwrite; null for what is created or fails. */
  path: string | null;
}

/** BlockdevOptions* of QEMU's qapi/block-core.json, as far as they are used. */
export type ProtocolOptions =
  | { driver: 'file' | 'host_device'; filename: string; aio: 'threads' }
  | {
      driver: 'nbd';
      server:
        | { type: 'inet'; host: string; port: string }
        | { type: 'unix'; path: string }
        /** A connected socket by the name that QEMU's monitor knows it by. */
        | { type: 'fd'; str: string };
      export: string;
      'reconnect-delay': number;
      'tls-creds'?: string;
    }
  | {
      driver: 'iscsi';
      transport: 'tcp';
      portal: string;
      target: string;
      lun: number;
      timeout: number;
      user?: string;
      'password-secret'?: string;
      'initiator-name'?: string;
    }
  | {
      driver: 'rbd';
      pool: string;
      namespace?: string;
      image: string;
      conf?: string;
      server?: { host: string; port: string }[];
      user?: string;
      'auth-client-required'?: ('cephx' | 'none')[];
      'key-secret'?: string;
    };
