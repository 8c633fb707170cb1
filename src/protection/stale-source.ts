import type { Domain } from '../domain/domain.ts';
import { imageName, sameStorage } from '../storage/image.ts';
import type { DomainRecord } from './record.ts';

/** Why a domain must not start as it is defined: a disk of it is somebody's stale copy, whoever asks. Null if it may. */
export function staleSource(records: DomainRecord[], { name, disks }: Domain): string | null {
  for (const { dev, image } of disks) {
    if (image === null) continue;
    for (const record of records) {
      for (const { dev: copyOf, primary, mirror } of record.disks) {
        const [stale, current] = sameStorage(image, primary.image) ? [primary, mirror] : [mirror, primary];
        if (!sameStorage(image, stale.image) || stale.current) continue;
        return (
          `virt-cdp: ${name} can't start: '${imageName(image)}' (${dev}) is a stale copy of ${record.name}'s disk ${copyOf}; ` +
          `the current one is '${imageName(current.image)}'. Type: virt-cdp start ${record.name}`
        );
      }
    }
  }
  return null;
}
