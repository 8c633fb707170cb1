import { waitsAt } from '../../health/kernel-waits.ts';
import { waitsForServer } from '../../health/tcp-connections.ts';
import type { Side } from '../model.ts';
import type { DiskObservation } from '../observation.ts';
import { copiesInUse } from './copies-in-use.ts';

export interface Waiting {
  /** QEMU's process. */
  pid: number | null;
  /** For how long no request has ended. */
  stuckMs: number;
  /** Its threads that have waited in the kernel all that time. */
  threads: string[];
  yanked: Record<Side, boolean>;
}

/** The kernel's clock ticks up to every 10 ms, and the connection was looked at after the device. */
const clockMs = 100;

/**
 * The copies that QEMU itself is seen to wait for, though their storage answers others: by its one connection to a copy's server, by its
 * threads that are at the copy's file or device. What it has open for other disks and jobs is no evidence. Nothing waits for a copy that
 * was yanked, so what waits then waits for the other one.
 */
export async function awaitedCopies(disk: DiskObservation, waiting: Waiting, proc = '/proc'): Promise<Side[]> {
  const { pid, stuckMs, threads, yanked } = waiting;
  const sides = copiesInUse(disk);
  if (sides.some((side) => yanked[side])) return sides.filter((side) => !yanked[side]);
  if (pid === null) return [];
  const awaited = await Promise.all(
    sides.map(async (side) => {
      const { source } = disk.record[side].image;
      if ('path' in source) return waitsAt(pid, threads, source.path, proc);
      if (source.kind !== 'nbd' || 'socket' in source.server) return false;
      return waitsForServer(pid, source.server, stuckMs - clockMs);
    }),
  );
  return sides.filter((_, index) => awaited[index]);
}
