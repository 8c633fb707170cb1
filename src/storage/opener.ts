import { randomBytes } from 'node:crypto';
import { closeSync, mkdtempSync, openSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import type { Config } from '../config/config.ts';
import { nbdCertificates } from '../config/qemu-conf.ts';
import type { Image } from '../domain/image.ts';
import type { LibvirtClient } from '../libvirt/client.ts';
import { writeCephConfig } from './ceph-config.ts';
import { kindOf } from './image.ts';
import { secretId, type Access } from './kind.ts';
import {
  readLibvirtSecret,
  secretObject,
  type NeededSecret,
  type OpenSecret,
  type SecretKey,
  type SecretReader,
} from './secrets.ts';

/** What must be at hand when an image is opened. */
export interface Prepared {
  access: Access;
  /** Objects that exist while the image is being opened; no longer, QEMU keeps what it has read. */
  secrets: OpenSecret[];
  /** Another such object; null where the image is not reached by TLS. */
  certificates: CertificatesObject | null;
}

/** TlsCredsX509Properties of QEMU's qapi/crypto.json. */
export type CertificatesObject = {
  'qom-type': 'tls-creds-x509';
  id: string;
  /** The folder of ca-cert.pem, client-cert.pem and client-key.pem. */
  dir: string;
  endpoint: 'client';
  'verify-peer': true;
};

/** What the agent has for opening images, in QEMU by `blockdev-add` and in tools. */
export class ImageOpener {
  readonly #readSecret: SecretReader;
  readonly #timeoutMs: () => number;
  readonly #folder: string;
  readonly #certificates: () => Promise<string>;
  #toolKey: { key: SecretKey; fd: number } | null = null;

  /**
   * `folder`: for files that QEMU reads too; it need not exist. `certificates`: the folder of those with which NBD servers are spoken to.
   */
  constructor(from: {
    readSecret: SecretReader;
    timeoutMs: () => number;
    folder: string;
    certificates: () => Promise<string>;
  }) {
    this.#readSecret = from.readSecret;
    this.#timeoutMs = from.timeoutMs;
    this.#folder = from.folder;
    this.#certificates = from.certificates;
  }

  /** With the secrets of this libvirt, and what the configuration says. */
  static of(libvirt: () => LibvirtClient, config: () => Config): ImageOpener {
    return new ImageOpener({
      readSecret: (secret) => readLibvirtSecret(libvirt(), secret),
      timeoutMs: () => config().mirror.timeoutMs,
      folder: dirname(config().socket),
      certificates: async () => config().nbd.tlsCertDir ?? (await nbdCertificates()),
    });
  }

  /**
   * Reads the image's secrets, the IDs of whose objects begin with `objects`, and writes what else its driver reads.
   * @throws CdpError `secret-private`, `secret-missing`, `ceph-config-unreadable`, `ceph-key-in-config`.
   */
  async prepare(image: Image, objects: string): Promise<Prepared> {
    const { source } = image;
    const timeoutMs = this.#timeoutMs();
    const cephConfig = source.kind === 'rbd' ? await writeCephConfig(this.#folder, source, timeoutMs) : null;
    const access: Access = { objects, timeoutMs, cephConfig };
    const secrets = await Promise.all(
      Object.entries(secretsOf(image)).map(async ([purpose, secret]) => ({
        id: secretId(access, purpose),
        value: await this.#readSecret(secret),
      })),
    );
    return { access, secrets, certificates: await this.#certificatesOf(image, access) };
  }

  async #certificatesOf({ source }: Image, access: Access): Promise<CertificatesObject | null> {
    if (kindOf(source).usesTls?.(source) !== true) return null;
    const [id, dir] = [secretId(access, 'tls'), await this.#certificates()];
    return { 'qom-type': 'tls-creds-x509', id, dir, endpoint: 'client', 'verify-peer': true };
  }

  /**
   * How qemu-img and qemu-io get secrets: encrypted in their arguments, with the key in a descriptor, as their third. That of the
   * key is of a file that has no name any more.
   */
  toolSecrets(secrets: OpenSecret[]): { args: string[]; fd: number } | null {
    if (secrets.length === 0) return null;
    this.#toolKey ??= newToolKey();
    const { key, fd } = this.#toolKey;
    const keyObject = { 'qom-type': 'secret', id: key.id, format: 'raw', file: '/dev/fd/3' };
    const objects = [keyObject, ...secrets.map((secret) => secretObject(secret, key))];
    return { args: objects.flatMap((object) => ['--object', JSON.stringify(object)]), fd };
  }

  close(): void {
    if (this.#toolKey !== null) closeSync(this.#toolKey.fd);
    this.#toolKey = null;
  }
}

/** The secrets without which an image can't be opened, by what they are for. */
function secretsOf({ source, encryption }: Image): Record<string, NeededSecret> {
  return {
    ...kindOf(source).secrets(source),
    ...(encryption !== undefined && { luks: { type: 'volume' as const, name: encryption.secret } }),
  };
}

function newToolKey(): { key: SecretKey; fd: number } {
  const bytes = randomBytes(32);
  const folder = mkdtempSync(join(tmpdir(), 'virt-cdp-'));
  try {
    const fd = openSync(join(folder, 'key'), 'wx+', 0o600);
    writeSync(fd, bytes);
    return { key: { id: 'virt-cdp-key', bytes }, fd };
  } finally {
    rmSync(folder, { recursive: true });
  }
}
