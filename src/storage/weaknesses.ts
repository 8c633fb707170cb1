import type { Image } from '../domain/image.ts';
import { hasCephTimeout } from './ceph-config.ts';
import { durabilityDoubt, type Doubt } from './durability.ts';
import { imageName } from './image.ts';
import type { LookOptions } from './tools.ts';

/** Whose time-outs hold: those with which libvirt's own configuration opened it, or the agent's. */
export type OpenedBy = 'libvirt' | 'agent';

/**
 * What is weak about the storage of an image, a sentence each: what can hang a guest for good, or lose what was acknowledged without
 * anybody being told.
 */
export async function weaknesses(image: Image, openedBy: OpenedBy, options: LookOptions): Promise<Doubt[]> {
  const hang = await hangProblem(image, openedBy);
  const durability = await durabilityDoubt(image, options);
  return [...(hang === null ? [] : [{ what: hang, known: true }]), ...(durability === null ? [] : [durability])];
}

async function hangProblem(image: Image, openedBy: OpenedBy): Promise<string | null> {
  const { source } = image;
  const name = `'${imageName(image)}'`;
  switch (source.kind) {
    case 'iscsi':
      if (openedBy === 'agent') return null;
      return `QEMU's iSCSI initiator waits without end for a target that is gone: if that of ${name} is, the guest hangs until it is back`;
    case 'rbd':
      if (openedBy === 'agent' || (await hasCephTimeout(source))) return null;
      return (
        `Ceph's client of ${name} has no time-out: if the cluster is gone, the guest hangs and is not moved; set rados_osd_op_timeout ` +
        `under [client] in ${source.config ?? '/etc/ceph/ceph.conf'}, for the domain's next start`
      );
    case 'file':
    case 'block':
    case 'nbd':
      return null;
  }
}
