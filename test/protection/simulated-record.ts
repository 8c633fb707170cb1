import type { Policy } from '../../src/domain/declaration.ts';
import { newDiskRecord, type DiskRecord, type DomainRecord } from '../../src/protection/record.ts';
import { parseImageUri, type Image } from '../../src/storage/image.ts';

/** A domain of which only the record is written yet, and what defines its disks. */
export function firstRecord(
  policy: Policy,
  devs: string[],
): { record: DomainRecord; defined: ReadonlyMap<string, Image> } {
  const defined = new Map<string, Image>();
  const disks = devs.map((dev): DiskRecord => {
    const [path, mirror] = [parseImageUri(`/primary/${dev}`), parseImageUri(`/mirror/${dev}`)];
    // Of two disks one is in an image that keeps bitmaps.
    const primary: Image = { ...path, format: dev === 'vda' ? 'qcow2' : 'raw' };
    defined.set(dev, primary);
    return newDiskRecord({ dev, mirror, rebuild: null }, primary, false);
  });
  const record: DomainRecord = {
    version: 1,
    uuid: '8a2f0b4e-0000-4000-8000-000000000001',
    name: 'web1',
    policy,
    lastStart: null,
    restoreOwed: null,
    disks,
  };
  return { record, defined };
}
