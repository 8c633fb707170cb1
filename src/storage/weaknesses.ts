import type { Image, IscsiSource } from '../domain/image.ts';
import { errorText } from '../errors.ts';
import { hasWriteCache } from '../iscsi/client.ts';
import { hasCephTimeout } from './ceph-config.ts';
import { imageName } from './image.ts';
import type { LookOptions } from './tools.ts';

/** Under which QEMU's tools present themselves (block/iscsi.c: get_initiator_name). */
const toolInitiator = 'iqn.2008-11.org.linux-kvm';

/** Whose time-outs hold: those with which libvirt's own configuration opened it, or the agent's. */
export type OpenedBy = 'libvirt' | 'agent';

/**
 * What is weak about the storage of an image, a sentence each: what can hang a guest for good, or lose what was acknowledged without
 * anybody being told.
 */
export async function weaknesses(image: Image, openedBy: OpenedBy, options: LookOptions): Promise<string[]> {
  const { source } = image;
  const name = `'${imageName(image)}'`;
  if (source.kind === 'iscsi') {
    return [
      `QEMU's iSCSI initiator waits without end for a target that is gone: if that of ${name} is, the guest hangs until it is back`,
      ...(await cacheWeakness(image, source, options)),
    ];
  }
  if (source.kind !== 'rbd' || openedBy === 'agent' || (await hasCephTimeout(source).catch(() => false))) return [];
  return [
    `Ceph's client of ${name} has no time-out: if the cluster is gone, the guest hangs and is not moved; set rados_osd_op_timeout ` +
      `under [client] in ${source.config ?? '/etc/ceph/ceph.conf'}, for the domain's next start`,
  ];
}

async function cacheWeakness(image: Image, source: IscsiSource, options: LookOptions): Promise<string[]> {
  const name = `'${imageName(image)}'`;
  try {
    const { secrets } = await options.opener.prepare(image, 'virt-cdp');
    const [secret] = secrets;
    const { host, port, target, lun, initiator, login } = source;
    const volatile = await hasWriteCache(
      {
        ...{ host, port, target, lun, initiator: initiator ?? toolInitiator },
        login: login !== null && secret !== undefined ? { username: login.username, password: secret.value } : null,
      },
      options.deadlineMs,
    );
    if (volatile !== true) return [];
    return [
      `the LUN ${name} has a write cache (WCE): if its server loses power, acknowledged writes are lost, and QEMU's initiator, which ` +
        `reconnects by itself, tells nobody; turn the cache off at the target`,
    ];
  } catch (error) {
    return [`whether the LUN ${name} has a write cache could not be read: ${errorText(error)}`];
  }
}
