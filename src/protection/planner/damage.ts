import type { DiskGraph } from '../../graph/view.ts';
import type { DiskObservation } from '../observation.ts';

/** Which copy of a disk is damaged, as far as can be told. */
export type Damage =
  | 'none'
  | 'primary'
  | 'mirror'
  | 'both'
  /** An I/O failed and nobody knows on which copy: the copies must be asked. */
  | 'unknown'
  /** The primary's storage is full: the administrator makes room, the data are not in danger. */
  | 'primary-full';

/** A mirror job under the device writes to both copies, or copies the one onto the other. */
export function isPairByJob({ layout, pair }: DiskGraph): boolean {
  return layout === 'pair' && pair?.engine === 'mirror';
}

/** The pair's job has not copied everything yet, or nobody has recorded that it has: nothing counts on the mirror. */
export function isFirstCopy({ graph, record, withoutStopPolicy }: DiskObservation): boolean {
  return withoutStopPolicy !== null && graph?.layout === 'pair' && graph.pair !== null && !record.mirror.current;
}

/**
 * Judges a pair. A primary whose file is gone takes every write, and loses them all when QEMU ends: it is left for the mirror. An
 * error that both copies survive is put down to the mirror: its server may have lost writes that it had
 * acknowledged, and the guest must never go on over a pair that has failed. What the mirror may lack is in the epochs.
 */
export function damageOf(disk: DiskObservation): Damage {
  const { ioFailed, primaryGone } = disk;
  if (isFirstCopy(disk)) return ioFailed && isFull(disk) ? 'primary-full' : 'none';
  if (disk.graph?.pair?.inSync === false) return 'mirror';
  const { primary, mirror } = healthOf(disk);
  if (primary.is === 'failed' && mirror.is === 'failed') return 'both';
  if (primary.is === 'failed') return primary.noSpace ? (ioFailed ? 'primary-full' : 'mirror') : 'primary';
  if (mirror.is === 'failed') return primaryGone === null ? 'mirror' : 'both';
  if (primaryGone !== null) return ioFailed && mirror.is === 'unknown' ? 'unknown' : 'primary';
  if (!ioFailed) return 'none';
  return primary.is === 'answering' && mirror.is === 'answering' ? 'mirror' : 'unknown';
}

/** Through a mirror job the guest is shown the primary's errors alone. */
function healthOf(disk: DiskObservation): DiskObservation['health'] {
  const { graph, health, ioFailed } = disk;
  if (graph === null || !isPairByJob(graph) || !ioFailed || health.primary.is !== 'unknown') return health;
  return {
    ...health,
    primary: { is: 'failed', why: "the guest's I/O failed", noSpace: isFull(disk) },
  };
}

function isFull({ graph, noSpace }: DiskObservation): boolean {
  return noSpace || graph?.ioStatus === 'nospace';
}
