import { withErrorPolicy, withStopPolicy } from '../domain/edit.ts';
import type { LibvirtClient } from '../libvirt/client.ts';
import { CdpError } from '../errors.ts';
import { domainRunState, pausedReason } from '../libvirt/constants.ts';
import { LibvirtError } from '../libvirt/errors.ts';
import type { DomainRef } from '../libvirt/types.ts';
import { runTool } from '../storage/run-tool.ts';
import type { Protector } from './protector.ts';
import type { OwedRestore } from './record.ts';

/** Where libvirt's system daemon keeps managed saves (qemu/qemu_conf.c: saveDir). */
export const saveFolder = '/var/lib/libvirt/qemu/save';

const flushDeadlineMs = 2_000;

/** Makes durable what is in libvirt's folder and what is not; answers why that may not be so, null if it is. */
export type FlushSaves = () => Promise<string | null>;

/** A guest waits for it, so it is no longer waited for than for a record. */
async function flushSaveFolder(): Promise<string | null> {
  const { status, deadlinePassed, stderr } = await runTool('sync', ['--', saveFolder], { deadlineMs: flushDeadlineMs });
  if (status === 0) return null;
  return deadlinePassed ? `'${saveFolder}' was not flushed within ${flushDeadlineMs} ms` : stderr.trim();
}

/** A save writes all of a guest's memory, a restore reads it: that long may they take, and nothing else waits for them. */
export const wholeMemoryDeadlineMs = 3_600_000;

/**
 * Brings a domain back that was saved for the stop policy, if its agent did not get to the end of it. A domain that is still being
 * saved is left alone: its stop will be heard. To one that goes on, or has nothing saved any more, nothing is owed.
 */
export async function settleRestore(
  client: LibvirtClient,
  protector: Protector,
  flush: FlushSaves = flushSaveFolder,
): Promise<void> {
  if (protector.record.restoreOwed === null) return;
  await protector.change(async (record) => {
    const owed = record.restoreOwed;
    if (owed === null) return { record, result: undefined };
    const ref = await client.lookupByUuid(record.uuid);
    if (ref.id >= 0) {
      if (await isBeingSaved(client, ref)) return { record, result: undefined };
      if (owed.failed === null) await letGoOn(client, protector, ref, owed, flush);
      return { record: { ...record, restoreOwed: null }, result: undefined };
    }
    if (!(await client.hasManagedSave(ref))) return { record: { ...record, restoreOwed: null }, result: undefined };
    if (owed.failed !== null) return { record, result: undefined };
    const { restoreOwed } = await bringBack(client, protector, ref, owed, flush);
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
 * Lets a domain go on from its managed save, its disks with the stop policy. Where libvirt can't, it is started as it was saved; where it
 * can't do that either, the domain stays saved, and `virsh start` tries again.
 * @throws what is no answer of libvirt's: then it is not known what happened.
 */
export async function bringBack(
  client: LibvirtClient,
  protector: Protector,
  ref: DomainRef,
  owed: OwedRestore,
  flush: FlushSaves = flushSaveFolder,
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
    await letGoOn(client, protector, ref, owed, flush);
    protector.note('restored', null, refusal === null ? {} : { why: refusal.text });
    return { restoreOwed: null, refusal: refusal?.text ?? null };
  } catch (error) {
    if (!(error instanceof LibvirtError)) throw error;
    protector.note('restore-failed', null, { error: error.text, hint: `virsh start ${ref.name}` });
    return { restoreOwed: { ...owed, failed: error.text }, refusal: error.text };
  }
}

/** libvirt's job ends before the domain does: until then it is paused for it. */
async function isBeingSaved(client: LibvirtClient, ref: DomainRef): Promise<boolean> {
  if (await client.hasJob(ref)) return true;
  const { state, reason } = await client.state(ref);
  return state === domainRunState.paused && reason === pausedReason.save;
}

/**
 * A guest that is restored writes to its disks, and what was saved fits them no more: it does not run before that is gone, so that
 * no power cut brings it back. libvirt removes the file, but does not flush its folder; killed in mid-restore, it leaves the file.
 */
async function letGoOn(
  client: LibvirtClient,
  protector: Protector,
  { uuid, name }: DomainRef,
  owed: OwedRestore,
  flush: FlushSaves,
): Promise<void> {
  const ref = await client.lookupByUuid(uuid);
  // libvirt answers no question to QEMU before it has ended a restore that it is still at, which reads the file.
  await client.qemuMonitorCommand(ref, '{"execute":"query-status"}');
  const { state, reason } = await client.state(ref);
  if (state !== domainRunState.paused || reason !== pausedReason.migration) return;
  if (await client.hasManagedSave(ref)) await client.managedSaveRemove(ref);
  const problem = await flush();
  if (problem !== null) protector.note('record-not-durable', null, { error: `what was saved of ${name}: ${problem}` });
  if (owed.suspended) return;
  try {
    await client.resume(ref);
  } catch (error) {
    if (!(error instanceof LibvirtError)) throw error;
    throw new CdpError({
      code: 'resume-failed',
      message: `${name} is restored, and stands still: libvirt could not resume it: ${error.text}`,
      hint: `virsh resume ${name}`,
      cause: error,
    });
  }
}

/** Answers with libvirt's refusal, null if there was none. A definition that libvirt refuses leaves the saved one. */
async function startWith(client: LibvirtClient, ref: DomainRef, xml: string): Promise<LibvirtError | null> {
  try {
    await client.managedSaveDefineXml(ref, xml);
    await client.create(ref, { paused: true }, wholeMemoryDeadlineMs);
    return null;
  } catch (error) {
    if (error instanceof LibvirtError) return error;
    throw error;
  }
}

async function isActive(client: LibvirtClient, { uuid }: DomainRef): Promise<boolean> {
  return (await client.lookupByUuid(uuid)).id >= 0;
}
