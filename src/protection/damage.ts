import type { Observation } from './observation.ts';
import type { PresentDisk } from './surgery.ts';

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

/**
 * Judges a pair. An error that both copies survive is put down to the mirror: its server may have lost writes that it had
 * acknowledged, and the guest must never go on over a quorum that has failed. What the mirror may lack is in the epochs.
 */
export function damageOf(o: Observation, { graph, health }: PresentDisk): Damage {
  const { primary, mirror } = health;
  const failed = graph.ioStatus !== 'ok' && o.run !== 'running';
  if (primary.is === 'failed' && mirror.is === 'failed') return 'both';
  if (primary.is === 'failed') return primary.noSpace ? (failed ? 'primary-full' : 'mirror') : 'primary';
  if (mirror.is === 'failed') return 'mirror';
  if (!failed) return 'none';
  return primary.is === 'answering' && mirror.is === 'answering' ? 'mirror' : 'unknown';
}
