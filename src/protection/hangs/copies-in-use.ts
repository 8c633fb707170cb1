import type { Image } from '../../domain/image.ts';
import { sameStorage } from '../../storage/image.ts';
import type { Side } from '../model.ts';
import type { DiskObservation } from '../observation.ts';

type Seen = Pick<DiskObservation, 'graph' | 'record' | 'liveImage'>;
type Policed = Seen & Pick<DiskObservation, 'withoutStopPolicy'>;

/** The copies that QEMU has open: the guest's requests, or what waits for all requests to end, may wait for each of them. */
export function copiesInUse({ graph, record, liveImage }: Seen): Side[] {
  switch (graph?.layout) {
    case 'pair':
      return ['primary', 'mirror'];
    case 'primary':
      if (liveImage !== null && sameStorage(liveImage, record.mirror.image)) return ['mirror'];
      return graph.mirrorOpen ? ['primary', 'mirror'] : ['primary'];
    case 'mirror':
    case 'layered':
      return graph.syncJob === null ? ['mirror'] : ['primary', 'mirror'];
    case 'parked':
    case undefined:
      return [];
  }
}

export function imagesInUse(disk: Seen): Image[] {
  return copiesInUse(disk).map((side) => disk.record[side].image);
}

/**
 * Those that the guest can do without: both of a pair, and one that is being brought up to date. Without the stop policy it would be told
 * of what QEMU fails on the primary, which it goes on with if that answers again.
 */
export function spareCopies(disk: Policed): Side[] {
  if (disk.graph?.layout === 'pair') return disk.withoutStopPolicy === null ? ['primary', 'mirror'] : ['mirror'];
  const target = syncTarget(disk);
  return target === null ? [] : [target];
}

/** The copy that is being brought up to date. */
export function syncTarget({ graph, record }: Pick<Seen, 'graph' | 'record'>): Side | null {
  if (graph?.syncJob == null) return null;
  return record.primary.current ? 'mirror' : 'primary';
}
