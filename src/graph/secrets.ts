import { readFile } from 'node:fs/promises';
import { CdpError } from '../errors.ts';
import { QmpError } from '../qmp/errors.ts';
import type { Monitor } from '../qmp/monitor.ts';
import type { Prepared } from '../storage/opener.ts';
import { secretObject, type SecretKey } from '../storage/secrets.ts';

/** The secret object under which libvirt itself encrypts what it hands to a QEMU (qemuDomainGetMasterKeyAlias). */
const masterKeyId = 'masterKey0';

/**
 * Does something while QEMU has what opening an image needs, secrets encrypted under the domain's master key, and takes it away
 * again. An agent that died in between may have left some.
 * @throws CdpError `master-key-unreadable`; what the work throws.
 */
export async function withObjects<T>(
  monitor: Monitor,
  { secrets, certificates }: Pick<Prepared, 'secrets' | 'certificates'>,
  work: () => Promise<T>,
): Promise<T> {
  const key = secrets.length === 0 ? null : await masterKey(monitor);
  const objects = [
    ...(key === null ? [] : secrets.map((secret) => secretObject(secret, key))),
    ...(certificates === null ? [] : [certificates]),
  ];
  try {
    for (const object of objects) {
      await removeObject(monitor, object.id);
      await monitor.execute('object-add', { ...object });
    }
    return await work();
  } finally {
    for (const { id } of objects) await removeObject(monitor, id);
  }
}

/** The key lies in the file from which QEMU has read it: libvirt's folder for the domain's state, wherever that is. */
async function masterKey(monitor: Monitor): Promise<SecretKey> {
  let file: unknown;
  try {
    file = await monitor.execute('qom-get', { path: `/objects/${masterKeyId}`, property: 'file' });
    return { id: masterKeyId, bytes: await readFile(String(file)) };
  } catch (cause) {
    throw new CdpError({
      code: 'master-key-unreadable',
      message: `the key under which libvirt gives secrets to this QEMU could not be read${typeof file === 'string' ? ` from '${file}'` : ''}`,
      hint: 'see whether the agent runs as root, on the same files as libvirt',
      cause,
    });
  }
}

async function removeObject(monitor: Monitor, id: string): Promise<void> {
  try {
    await monitor.execute('object-del', { id });
  } catch (error) {
    if (!(error instanceof QmpError && /not found/i.test(error.description))) throw error;
  }
}
