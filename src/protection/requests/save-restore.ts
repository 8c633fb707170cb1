import { hasStopPolicy, parseDomain, type Domain } from '../../domain/domain.ts';
import { CdpError, errorText, RefusedError } from '../../errors.ts';
import { domainRunState, pausedReason } from '../../libvirt/constants.ts';
import { LibvirtError } from '../../libvirt/errors.ts';
import type { DomainRef } from '../../libvirt/types.ts';
import { requireSpaceIn } from '../../storage/free-space.ts';
import { measureWriteRate } from '../../storage/write-rate.ts';
import type { Host } from '../host.ts';
import type { Protector } from '../protector.ts';
import { bringBack, saveFolder, wholeMemoryDeadlineMs, type FlushSaves } from '../saved-domain.ts';
import { answerHook } from '../starts/hook-answer.ts';

// A running domain gets the stop policy without a reboot: libvirt saves it (managed save), the policy is written into the XML of
// what was saved, and the domain is started from that.
//
// INVARIANTS
// - The record owes the restore, durably, before libvirt is asked to save: whichever agent lives when the domain is saved starts it.
// - What is saved is libvirt's own managed save: `virsh start` restores it too, whoever types it, without any agent.
// - The guest runs on only when nothing can restore it a second time.
// - It all happens in the domain's queue: no surgery of ours is under way, and none begins.
// - One domain of the host at a time: a save occupies one of libvirtd's workers for as long as it takes.

/** What a save holds besides the guest's memory: video memory and the devices' state, generously. */
const besidesMemoryBytes = 64 * 2 ** 20;

/** For the end of one QEMU and the start of another. */
const changeOfQemuMs = 3_000;

const folderDeadlineMs = 10_000;

/**
 * Finds everything that speaks against it before anything is changed.
 * @returns what the guest is in for, as sentences; null if the domain does not run, or the disk has the policy.
 */
export async function announcePause(host: Host, ref: DomainRef, dev: string): Promise<string | null> {
  if (ref.id < 0) return null;
  const { client } = host.session;
  const liveXml = await client.domainXml(ref);
  const live = parseDomain(liveXml);
  const disk = live.disks.find((candidate) => candidate.dev === dev);
  if (disk === undefined || hasStopPolicy(disk)) return null;
  if (!(await client.isPersistent(ref))) {
    throw new CdpError({
      code: 'domain-transient',
      message: `${ref.name} is transient: libvirt saves only persistent domains in a way that outlives the agent`,
      hint: `make it persistent: virsh dumpxml --security-info ${ref.name} >${ref.name}.xml, virsh define ${ref.name}.xml`,
    });
  }
  refuseIfOneIsUnderWay(host);
  await requireRunning(host, ref);
  const records = host.protectors().map(({ record }) => record);
  const movedOff = records.find(({ uuid }) => uuid === ref.uuid)?.disks.find(({ primary }) => !primary.current);
  if (movedOff !== undefined) {
    throw new CdpError({
      code: 'failed-over',
      message: `${ref.name} can't be saved while its disk ${movedOff.dev} runs on the mirror`,
      hint: `virt-cdp rebuild ${ref.name} first`,
    });
  }
  const { refuse } = answerHook(records, 'prepare', liveXml, true);
  if (refuse !== null) throw new CdpError({ code: 'start-would-be-refused', message: refuse.message });
  return pauseText(host, ref, live, dev);
}

async function pauseText(host: Host, ref: DomainRef, { memoryBytes }: Domain, dev: string): Promise<string> {
  if (memoryBytes === null) throw new Error(`libvirt does not tell how much memory ${ref.name} has`);
  await requireSpaceIn(saveFolder, memoryBytes + besidesMemoryBytes, {
    what: `the memory of ${ref.name}`,
    hint: 'make room there, or give the disks the policy by virsh shutdown and virsh start',
    deadlineMs: folderDeadlineMs,
  });
  const residentBytes = await host.session.client.residentBytes(ref);
  const inUseBytes = Math.min(memoryBytes, residentBytes ?? memoryBytes);
  const bytesPerS = await measureWriteRate(saveFolder, { deadlineMs: folderDeadlineMs });
  const seconds = Math.ceil(pauseEstimateMs(inUseBytes, bytesPerS) / 1000);
  return (
    `${ref.name} runs without error_policy='stop' on ${dev}. To get it without a reboot, the guest is saved to ` +
    `${saveFolder} and restored: it stands still for about ${seconds} s, and its network connections with it. ` +
    `(Estimated: ${mebibytes(inUseBytes)} of memory in use, written and read back at the ${mebibytes(bytesPerS)}/s of a test write ` +
    `there, and ${changeOfQemuMs / 1000} s for QEMU's end and start.)`
  );
}

/** A save compresses nothing, and reading it back is taken to be no faster than writing it. */
export function pauseEstimateMs(inUseBytes: number, bytesPerS: number): number {
  return changeOfQemuMs + (2 * inUseBytes * 1000) / bytesPerS;
}

function mebibytes(bytes: number): string {
  return `${Math.ceil(bytes / 2 ** 20)} MiB`;
}

/**
 * Saves the domain and starts it again, all of its declared disks with the stop policy; returns when it was looked at.
 * @returns for how long the guest stood still, in ms.
 * @throws CdpError `save-failed`: it runs on as before; `save-slow`: libvirt is still at it; `restore-failed`: it is saved and does
 * not run; `policy-refused`: it runs again as before.
 */
export async function saveAndRestore(
  host: Host,
  protector: Protector,
  ref: DomainRef,
  flush?: FlushSaves,
): Promise<number> {
  const { client } = host.session;
  const { name } = protector.record;
  await protector.change(async (record) => {
    refuseIfOneIsUnderWay(host);
    const live = parseDomain(await client.domainXml(ref));
    const disks = live.disks
      .filter((disk) => !hasStopPolicy(disk) && record.disks.some(({ dev }) => dev === disk.dev))
      .map(({ dev, errorPolicy, readErrorPolicy }) => ({ dev, errorPolicy, readErrorPolicy }));
    const suspended = await isSuspended(host, ref);
    return {
      record: { ...record, restoreOwed: disks.length === 0 ? null : { failed: null, suspended, disks } },
      result: undefined,
    };
  });
  const beganMs = performance.now();
  const refusal = await protector.change(async (record) => {
    const settled = { ...record, restoreOwed: null };
    if (record.restoreOwed === null) return { record, result: null };
    try {
      await requireRunning(host, ref);
      await requireNoJobs(protector);
      await client.managedSave(ref, wholeMemoryDeadlineMs);
    } catch (error) {
      if (error instanceof LibvirtError || error instanceof CdpError)
        return { record: settled, result: saveFailed(name, error) };
      throw saveUnknown(name, error);
    }
    protector.note('saved', null, {});
    const { restoreOwed, refusal: why } = await bringBack(client, protector, ref, record.restoreOwed, flush);
    const told = why === null ? null : restoreOwed === null ? policyRefused(name, why) : restoreFailed(name, why);
    return { record: { ...record, restoreOwed }, result: told };
  });
  const pausedMs = performance.now() - beganMs;
  if (refusal !== null) throw refusal;
  await host.begin(ref);
  await protector.looked();
  return pausedMs;
}

async function isSuspended(host: Host, ref: DomainRef): Promise<boolean> {
  const { state, reason } = await host.session.client.state(ref);
  return state === domainRunState.paused && reason === pausedReason.user;
}

/** What is not running, or paused by its user, is in the middle of something; or its disk fails, and nothing of it must be kept. */
async function requireRunning(host: Host, ref: DomainRef): Promise<void> {
  const { state } = await host.session.client.state(ref);
  if (state === domainRunState.running || (await isSuspended(host, ref))) return;
  throw new CdpError({
    code: 'domain-busy',
    message: `${ref.name} can't be saved now: it neither runs nor was it suspended by virsh suspend`,
    hint: `virsh domstate --reason ${ref.name}`,
  });
}

/** QEMU (7.2, tried) aborts if a block job still writes at the end of a save. Ours have been ended since the record owes the restore. */
async function requireNoJobs({ live, record }: Protector): Promise<void> {
  const [job] = (await live?.monitor.execute('query-block-jobs', {})) ?? [];
  if (job === undefined) return;
  throw new CdpError({
    code: 'domain-busy',
    message: `${record.name} can't be saved now: the block job ${job.device} runs on a disk of it`,
    hint: 'try again when it has ended',
  });
}

function refuseIfOneIsUnderWay(host: Host): void {
  const other = host.protectors().find(({ record }) => record.restoreOwed?.failed === null);
  if (other === undefined) return;
  throw new RefusedError({
    code: 'save-under-way',
    message: `${other.record.name} is being saved and restored, and one domain at a time is`,
    hint: `wait for it: virt-cdp status ${other.record.name}`,
  });
}

function saveFailed(name: string, error: Error): CdpError {
  return new CdpError({
    code: 'save-failed',
    message: `${name} is declared protected, but could not be saved, and runs on without error_policy='stop': ${errorText(error)}`,
    hint: `virsh shutdown ${name}, then virsh start ${name}; or mend what is in the way, and type the same again`,
    cause: error,
  });
}

function saveUnknown(name: string, error: unknown): CdpError {
  return new CdpError({
    code: 'save-slow',
    message: `libvirt was asked to save ${name}, and has not said how that ended: ${errorText(error)}`,
    hint: `the agent starts it again as soon as it is saved; virsh domjobabort ${name} gives up, and it runs on`,
    cause: error,
  });
}

function restoreFailed(name: string, why: string): CdpError {
  return new CdpError({
    code: 'restore-failed',
    message: `${name} is saved, with all of its memory, but could not be started again: ${why}`,
    hint: `mend what is in the way, then type: virsh start ${name}`,
  });
}

function policyRefused(name: string, why: string): CdpError {
  return new CdpError({
    code: 'policy-refused',
    message: `${name} was saved and restored as it was, without error_policy='stop': ${why}`,
    hint: `virsh shutdown ${name}, then virsh start ${name}`,
  });
}
