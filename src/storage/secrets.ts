import { createCipheriv, randomBytes } from 'node:crypto';
import type { SecretName, SecretType } from '../domain/image.ts';
import { CdpError } from '../errors.ts';
import type { LibvirtClient } from '../libvirt/client.ts';
import { secretUsage } from '../libvirt/constants.ts';
import { isLibvirtError, libvirtErrorCode } from '../libvirt/errors.ts';

// INVARIANT: a secret's value leaves this process only encrypted, under a key that QEMU or its tool has from elsewhere.

/** A secret that an image can't be opened without. */
export interface NeededSecret {
  type: SecretType;
  name: SecretName;
}

/** A secret for QEMU, by the ID of its object. */
export interface OpenSecret {
  id: string;
  value: Buffer;
}

export type SecretReader = (secret: NeededSecret) => Promise<Buffer>;

/** Under which QEMU decrypts secrets: an AES-256 key, known to it by the ID of another secret object. */
export interface SecretKey {
  id: string;
  bytes: Buffer;
}

/** SecretProperties of QEMU's qapi/crypto.json, as `object-add` and `--object` take them. */
export interface SecretObject {
  'qom-type': 'secret';
  id: string;
  keyid: string;
  /** The initialisation vector, base64. */
  iv: string;
  format: 'base64';
  /** AES-256-CBC with PKCS#7 padding (QEMU, crypto/secret_common.c). */
  data: string;
}

export function secretObject({ id, value }: OpenSecret, key: SecretKey): SecretObject {
  const iv = randomBytes(16);
  const cipher = createCipheriv('aes-256-cbc', key.bytes, iv);
  const data = Buffer.concat([cipher.update(value), cipher.final()]).toString('base64');
  return { 'qom-type': 'secret', id, keyid: key.id, iv: iv.toString('base64'), format: 'base64', data };
}

/** The secret itself is what is wrong, not the way to it. */
export function isSecretProblem({ code }: CdpError): boolean {
  return code === 'secret-private' || code === 'secret-missing';
}

const readDeadlineMs = 5_000;

/**
 * The value of a secret of libvirt's store, as libvirt itself would hand it to QEMU.
 * @throws CdpError `secret-private`, `secret-missing`; what the client throws.
 */
export async function readLibvirtSecret(client: LibvirtClient, { type, name }: NeededSecret): Promise<Buffer> {
  try {
    return 'uuid' in name
      ? await client.secretValueByUuid(name.uuid, readDeadlineMs)
      : await client.secretValueByUsage(secretUsage[type], name.usage, readDeadlineMs);
  } catch (error) {
    const which = 'uuid' in name ? `the libvirt secret ${name.uuid}` : `the libvirt ${type} secret '${name.usage}'`;
    if (isLibvirtError(error, libvirtErrorCode.invalidSecret)) {
      throw new CdpError({
        code: 'secret-private',
        message: `${which} can't be read: it is private, and libvirt gives its value to no client`,
        hint:
          "define it again with private='no' (virsh secret-dumpxml, secret-undefine, secret-define, secret-set-value): then only " +
          "libvirt's administrators can read it",
        cause: error,
      });
    }
    if (isLibvirtError(error, libvirtErrorCode.noSecret)) {
      throw new CdpError({
        code: 'secret-missing',
        message: `${which} does not exist, or has no value`,
        hint: 'virsh secret-list shows the secrets; virsh secret-define and secret-set-value make one',
        cause: error,
      });
    }
    throw error;
  }
}
