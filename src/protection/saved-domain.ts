import { withErrorPolicy, withStopPolicy } from '../domain/edit.ts';
import type { LibvirtClient } from '../libvirt/client.ts';
import { LibvirtError } from '../libvirt/errors.ts';
import type { DomainRef } from '../libvirt/types.ts';
import type { Protector } from './protector.ts';
import type { OwedRestore } from './record.ts';

/** A save writes all of a guest's memory, a restore reads it: that long may they take, and nothing else waits for them. */
export const wholeMemoryDeadlineMs = 3_600_000;

/**
 * Brings a domain back that was saved for the stop policy, if its agent did not get to the end of it. A domain that is still being
 * saved is left alone: its stop will be heard. To one that runs, or has nothing saved any more, nothing is owed.
 */
export async function settleRestore(client: LibvirtClient, protector: Protector): Promise<void> {
  if (protector.record.restoreOwed === null) return;
  await protector.change(async (record) => {
    const owed = record.restoreOwed;
    if (owed === null) return { record, result: undefined };
    const ref = await client.lookupByUuid(record.uuid);
    if (ref.id >= 0) {
      const restoreOwed = (await client.hasJob(ref)) ? owed : null;
      return { record: { ...record, restoreOwed }, result: undefined };
    }
    if (!(await client.hasManagedSave(ref))) return { record: { ...record, restoreOwed: null }, result: undefined };
    if (owed.failed !== null) return { record, result: undefined };
    const { restoreOwed } = await bringBack(client, protector, ref, owed);
    return { record: { ...record, restoreOwed }, result: undefined };
  });
}

export interface BroughtBack {
  /** What is owed now. */
  restoreOwed: OwedRestore | null;
  /** Why the disks did not get the policy; null if they did. */
  refusal: string | null;
}

/**
 * Starts a domain from its managed save, its disks with the stop policy. Where libvirt can't, it is started as it was saved; where it
 * can't do that either, the domain stays saved, and `virsh start` tries again.
 * @throws what is no answer of libvirt's: then it is not known what happened.
 */
export async function bringBack(
  client: LibvirtClient,
  protector: Protector,
  ref: DomainRef,
  owed: OwedRestore,
): Promise<BroughtBack> {
  const { disks } = owed;
  try {
    const saved = await client.managedSaveXml(ref, { secure: true });
    const withPolicy = withStopPolicy(
      saved,
      disks.map(({ dev }) => dev),
    );
    const asItWas = disks.reduce((xml, disk) => withErrorPolicy(xml, disk.dev, disk), saved);
    const refusal = await startWith(client, ref, withPolicy);
    if (refusal !== null && !(await isActive(client, ref))) {
      const failed = await startWith(client, ref, asItWas);
      if (failed !== null) throw failed;
    }
    protector.note('restored', null, refusal === null ? {} : { why: refusal.text });
    return { restoreOwed: null, refusal: refusal?.text ?? null };
  } catch (error) {
    if (!(error instanceof LibvirtError)) throw error;
    protector.note('restore-failed', null, { error: error.text, hint: `virsh start ${ref.name}` });
    return { restoreOwed: { ...owed, failed: error.text }, refusal: error.text };
  }
}

/** Answers with libvirt's refusal, null if there was none. A definition that libvirt refuses leaves the saved one. */
async function startWith(client: LibvirtClient, ref: DomainRef, xml: string): Promise<LibvirtError | null> {
  try {
    await client.managedSaveDefineXml(ref, xml);
    await client.create(ref, {}, wholeMemoryDeadlineMs);
    return null;
  } catch (error) {
    if (error instanceof LibvirtError) return error;
    throw error;
  }
}

async function isActive(client: LibvirtClient, { uuid }: DomainRef): Promise<boolean> {
  return (await client.lookupByUuid(uuid)).id >= 0;
}
