import { diskNames, instantNames } from '../graph/names.ts';
import type { QmpEvent } from '../qmp/monitor.ts';
import type { Side } from './model.ts';
import type { DiskObservation, Health } from './observation.ts';

type Failed = Extract<Health, { is: 'failed' }>;

interface Report {
  side: Side;
  health: Failed;
}

/** What an event tells against a copy; null if nothing. */
export function damageReport(event: QmpEvent, disk: DiskObservation): Report | null {
  return event.event === 'QUORUM_REPORT_BAD' ? reportOfQuorum(event, disk) : reportOfMirrorJob(event, disk);
}

/**
 * QUORUM_REPORT_BAD names the child that failed; a name that is neither copy's is that of a job's filter, whose target failed, and
 * tells nothing against the copies.
 */
function reportOfQuorum({ data }: QmpEvent, disk: DiskObservation): Report | null {
  const node = data['node-name'];
  const side = sideOf(node, disk) ?? (data['type'] === 'write' ? null : verifiedSide(node, disk));
  if (side === null) return null;
  const error = typeof data['error'] === 'string' ? data['error'] : 'its data differ';
  return {
    side,
    health: { is: 'failed', why: `${String(data['type'])}: ${error}`, noSpace: /no space/i.test(error) },
  };
}

/**
 * The guest is shown what fails on the primary; the job says what fails on the mirror. Want of space that the guest was told of harms no
 * copy, and until there is a second one nothing can be moved onto it.
 */
function reportOfMirrorJob(event: QmpEvent, disk: DiskObservation): Report | null {
  const { graph, record } = disk;
  if (isFirstCopy(disk)) return null;
  const { data } = event;
  const why = String(data['operation']);
  if (event.event === 'BLOCK_JOB_ERROR' && data['device'] === diskNames(record.dev).pairJob)
    return { side: 'mirror', health: { is: 'failed', why: `${why} error of the mirror job`, noSpace: false } };
  if (event.event !== 'BLOCK_IO_ERROR' || graph?.layout !== 'pair' || graph.pair?.engine !== 'mirror') return null;
  if (data['node-name'] !== graph.root) return null;
  const noSpace = data['nospace'] === true;
  if (noSpace && data['action'] === 'report') return null;
  return { side: 'primary', health: { is: 'failed', why: `${why}: ${String(data['reason'])}`, noSpace } };
}

/**
 * Which disk's failed I/O stopped the guest, by the node under the device that the event names; null if the name is not known: it is
 * none of ours, or the graph has changed since the last look.
 */
export function stoppedDisk({ data }: QmpEvent, disks: DiskObservation[]): string | null {
  const node = data['node-name'];
  const disk = disks.find(
    ({ graph, record: { dev } }) =>
      graph !== null &&
      (graph.root === node ||
        Object.values(diskNames(dev)).some((name) => name === node) ||
        graph.primary?.chain.some((name) => name === node)),
  );
  return disk?.record.dev ?? null;
}

/**
 * A reset drops writes that were under way or waited to be retried: one copy may have one that the other has not. Nothing of
 * that was acknowledged; the mirror is brought up to date by its epochs.
 */
export const resetDamage: Failed = { is: 'failed', why: 'the guest was reset', noSpace: false };

/**
 * During a verify a copy is under a job's filter. A write that fails there may have found the scratch folder full; reads and flushes go
 * through to the copy alone (QEMU, block/copy-before-write.c: cbw_co_preadv, cbw_co_flush).
 */
function verifiedSide(node: unknown, { record: { dev } }: DiskObservation): Side | null {
  const { primary, mirror } = instantNames(dev);
  return node === primary.job ? 'primary' : node === mirror.job ? 'mirror' : null;
}

function sideOf(node: unknown, { graph, record }: DiskObservation): Side | null {
  if (node === diskNames(record.dev).mirror) return 'mirror';
  if (graph?.primary == null) return null;
  const { chain, data } = graph.primary;
  const own = graph.otherJob === null ? chain : chain.slice(chain.indexOf(data));
  return own.some((name) => name === node) ? 'primary' : null;
}

/** The job that makes the pair of a disk without the stop policy has everything to copy, as far as is known. */
function isFirstCopy({ withoutStopPolicy, record }: DiskObservation): boolean {
  return withoutStopPolicy !== null && record.primary.current && !record.mirror.current;
}

/** How a job of ours ended, and which copy is to blame if it failed on its target. */
export function jobReport(
  { event, data }: QmpEvent,
  disk: DiskObservation,
): { ok: true } | { ok: false; why: string; side: Side | null } | null {
  const { record } = disk;
  const { syncJob, pairJob } = diskNames(record.dev);
  if (data['device'] !== (isFirstCopy(disk) ? pairJob : syncJob)) return null;
  const target = record.primary.current ? 'mirror' : 'primary';
  if (event === 'BLOCK_JOB_ERROR') {
    const side = data['operation'] === 'write' ? target : null;
    return { ok: false, why: `${String(data['operation'])} error while the ${target} was brought up to date`, side };
  }
  if (event !== 'BLOCK_JOB_COMPLETED') return null;
  if (typeof data['error'] !== 'string') return { ok: true };
  return { ok: false, why: `the ${target} could not be brought up to date: ${data['error']}`, side: target };
}
