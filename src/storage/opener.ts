import { randomBytes } from 'node:crypto';
import { closeSync, mkdtempSync, openSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Image } from '../domain/image.ts';
import { writeCephConfig } from './ceph-config.ts';
import { kindOf } from './image.ts';
import { secretId, type Access } from './kind.ts';
import { secretObject, type NeededSecret, type OpenSecret, type SecretKey, type SecretReader } from './secrets.ts';

/** What must be at hand when an image is opened. */
export interface Prepared {
  access: Access;
  /** Objects that exist while the image is being opened; no longer, QEMU keeps what it has read. */
  secrets: OpenSecret[];
}

/** What the agent has for opening images, in QEMU by `blockdev-add` and in tools. */
export class ImageOpener {
  readonly #readSecret: SecretReader;
  readonly #timeoutMs: () => number;
  readonly #folder: string;
  #toolKey: { key: SecretKey; fd: number } | null = null;

  /** `folder`: for files that QEMU reads too; it need not exist. */
  constructor({
    readSecret,
    timeoutMs,
    folder,
  }: {
    readSecret: SecretReader;
    timeoutMs: () => number;
    folder: string;
  }) {
    this.#readSecret = readSecret;
    this.#timeoutMs = timeoutMs;
    this.#folder = folder;
  }

  /**
   * Reads the image's secrets, the IDs of whose objects begin with `objects`, and writes what else its driver reads.
   * @throws CdpError `secret-private`, `secret-missing`, `ceph-config-unreadable`.
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
    return { access, secrets };
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
function secretsOf({ source }: Image): Record<string, NeededSecret> {
  return kindOf(source).secrets(source);
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
