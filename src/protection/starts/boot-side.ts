import type { Image } from '../../domain/image.ts';
import { CdpError, RefusedError } from '../../errors.ts';
import { imageName, sameStorage } from '../../storage/image.ts';
import type { Side } from '../model.ts';
import { stale } from '../planner/surgery.ts';
import type { DiskRecord } from '../record.ts';
import { staleImages } from './stale-images.ts';

/** The copy to boot from. @throws RefusedError when only a stale one answers and nobody accepted the loss. */
export function bootSide(disk: DiskRecord, answers: Record<Side, boolean>, acceptDataLoss: boolean): Side {
  const sides: Side[] = ['primary', 'mirror'];
  const current = sides.find((side) => disk[side].current && answers[side]);
  if (current !== undefined) return current;
  const staleSide = sides.find((side) => !disk[side].current && answers[side]);
  const lost = sides.filter((side) => disk[side].current).map((side) => imageName(disk[side].image));
  if (staleSide === undefined) {
    throw new CdpError({
      code: 'no-copy',
      message: `no copy of disk ${disk.dev} answers`,
      hint: `bring ${lost.join(' or ')} back`,
    });
  }
  const { image, consistentAsOf } = disk[staleSide];
  const asOf =
    consistentAsOf === null
      ? 'it is a mixture of times and may not even boot'
      : `everything written after ${consistentAsOf} is lost`;
  if (acceptDataLoss) return staleSide;
  throw new RefusedError({
    code: 'stale-copy',
    message: `disk ${disk.dev}: only the stale copy '${imageName(image)}' answers; ${asOf}`,
    hint: `bring ${lost.join(' or ')} back, or add --accept-data-loss`,
  });
}

/**
 * A definition that names neither copy may name an overlay, made by a snapshot that nobody saw: then the primary alone lacks what
 * was written since. Nobody but the administrator knows.
 */
export function refuseOtherImage(domain: string, disk: DiskRecord, side: Side, defined: Image | null): void {
  if (side !== 'primary' || defined === null) return;
  const { dev, primary, mirror } = disk;
  if ([primary.image, mirror.image, ...staleImages(disk)].some((image) => sameStorage(defined, image))) return;
  throw new RefusedError({
    code: 'definition-names-other',
    message: `the definition of ${domain}'s disk ${dev} names '${imageName(defined)}', which is not known as a copy; the last known primary is '${imageName(primary.image)}'`,
    hint: `if it is a snapshot's overlay over the primary: virsh start ${domain}. If not: --accept-data-loss starts from the primary`,
  });
}

/** The record of a disk that is started from one of its copies: the other one gets no writes. */
export function onlyCurrent(disk: DiskRecord, side: Side): DiskRecord {
  const other = side === 'primary' ? 'mirror' : 'primary';
  if (disk[side].current && side === 'primary') return disk;
  const now = new Date().toISOString();
  return {
    ...disk,
    [side]: { ...disk[side], current: true, consistentAsOf: null },
    [other]: stale(disk[other], disk.state === 'stopped' ? disk.since : now),
    track: null,
    exposedSince: disk.exposedSince ?? now,
  };
}
