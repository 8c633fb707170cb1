import type { Image } from '../../domain/image.ts';
import type { DiskRecord } from '../record.ts';

/**
 * What nobody may start from: copies that miss writes, primaries of former days, and what a rebuild is about to fill. When libvirt has
 * moved to the last the mirror has all that it has, and is the one that the record knows.
 */
export function staleImages({ primary, mirror, retired, intent, contested }: DiskRecord): Image[] {
  return [
    // A contested mirror is somebody else's.
    ...(contested === null ? [primary, mirror] : [primary]).flatMap(({ current, image }) => (current ? [] : [image])),
    ...(intent.kind === 'rebuild' && !primary.current ? [intent.to] : []),
    ...retired,
  ];
}
