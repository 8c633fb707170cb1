import { fingerprint } from '../storage/fingerprint.ts';
import { withDisk } from './planner/plan.ts';
import { endedUnseen, withSeal, type DiskRecord, type DomainRecord } from './record.ts';

/** Of the disks that QEMU ended with as pairs, those that the record calls so. */
export function currentPairs({ disks }: DomainRecord, pairs: string[]): DiskRecord[] {
  return disks.filter(({ dev, primary, mirror }) => pairs.includes(dev) && primary.current && mirror.current);
}

/** How a domain's QEMU ended. */
export interface Stop {
  /** The guest itself shut it down. */
  clean: boolean;
  /** The disks of which both copies had every write to the end, as far as was seen. */
  pairs: string[];
  /** The disks of which QEMU had the mirror open, as far as was seen. */
  open: string[];
  /** Somebody listened to the end. */
  watched: boolean;
  stoppedAtMs: number;
}

/** The record with how its pairs were when QEMU ended. A primary that somebody was quick to write to has no fingerprint to be compared with. */
export async function withStop(
  record: DomainRecord,
  { clean, pairs, open, watched, stoppedAtMs }: Stop,
  deadlineMs: number,
): Promise<DomainRecord> {
  const disks = record.disks.map((disk) => (watched && pairs.includes(disk.dev) ? disk : endedUnseen(disk)));
  let stopped: DomainRecord = { ...record, disks };
  for (const disk of currentPairs(stopped, pairs)) {
    const found = await fingerprint(disk.primary.image, { deadlineMs });
    // The guest's last flush has not reached a mirror job's target.
    const identical = clean && disk.engine === 'quorum';
    const atStop = found === null || found.writtenAtMs > stoppedAtMs ? null : { clean: identical, primary: found.text };
    const mirror = await fingerprint(disk.mirror.image, { deadlineMs });
    stopped = withSeal(withDisk(stopped, { ...disk, atStop }), disk.dev, 'mirror', mirror?.text);
  }
  // A sync that was under way has written to the mirror since it was last sealed.
  for (const { dev, primary, mirror } of stopped.disks) {
    if (!watched || !open.includes(dev) || !primary.current || mirror.current) continue;
    const found = await fingerprint(mirror.image, { deadlineMs });
    stopped = withSeal(stopped, dev, 'mirror', found?.text);
  }
  return stopped;
}

/** What there is to say of a domain that does not run. */
export function stoppedReason({ restoreOwed, name }: DomainRecord): string | null {
  if (restoreOwed === null) return null;
  const { failed } = restoreOwed;
  if (failed === null) return `its memory is saved, and it is to go on from there. Type: virsh start ${name}`;
  return `it could not go on from its saved memory: ${failed}. Type: virsh start ${name}; or, to give that memory up, virsh start --force-boot ${name}`;
}
