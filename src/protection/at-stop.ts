import { fingerprint } from '../storage/fingerprint.ts';
import { withDisk } from './planner/plan.ts';
import type { DiskRecord, DomainRecord } from './record.ts';

/** Of the disks that QEMU ended with as pairs, those that the record calls so. */
export function currentPairs({ disks }: DomainRecord, pairs: string[]): DiskRecord[] {
  return disks.filter(({ dev, primary, mirror }) => pairs.includes(dev) && primary.current && mirror.current);
}

/** The record with how its pairs were when QEMU ended. A primary that somebody was quick to write to has no fingerprint to be compared with. */
export async function withStop(
  record: DomainRecord,
  pairs: string[],
  { clean, stoppedAtMs, deadlineMs }: { clean: boolean; stoppedAtMs: number; deadlineMs: number },
): Promise<DomainRecord> {
  let stopped = record;
  for (const disk of currentPairs(record, pairs)) {
    const found = await fingerprint(disk.primary.image, { deadlineMs });
    const atStop = found === null || found.writtenAtMs > stoppedAtMs ? null : { clean, primary: found.text };
    stopped = withDisk(stopped, { ...disk, atStop });
  }
  return stopped;
}

/** What there is to say of a domain that does not run. */
export function stoppedReason({ restoreOwed, name }: DomainRecord): string | null {
  if (restoreOwed === null) return null;
  const failed = restoreOwed.failed === null ? '' : `; that failed: ${restoreOwed.failed}`;
  return `its memory is saved, and it is to go on from there${failed}. Type: virsh start ${name}`;
}
