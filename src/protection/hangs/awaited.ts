import type { NbdServer } from '../../domain/image.ts';
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
 * The copies that QEMU itself is seen to wait for, though their storage answers others: by its connection to the one's server, by its
 * threads that are at a file or device. Nothing waits for a copy that was yanked, so what waits then waits for the other one.
 */
export async function awaitedCopies(disk: DiskObservation, waiting: Waiting): Promise<Side[]> {
  const { pid, stuckMs, threads, yanked } = waiting;
  const sides = copiesInUse(disk);
  if (sides.some((side) => yanked[side])) return sides.filter((side) => !yanked[side]);
  if (pid === null) return [];
  const servers = sides.flatMap((side) => serverOf(disk, side) ?? []);
  const paths = sides.filter((side) => 'path' in disk.record[side].image.source);
  const awaited = await Promise.all(
    sides.map(async (side) => {
      if (paths.includes(side)) return paths.length === 1 && threads.length > 0;
      const server = serverOf(disk, side);
      const isShared = servers.filter((one) => one.host === server?.host && one.port === server.port).length > 1;
      return server !== null && !isShared && (await waitsForServer(pid, server, stuckMs - clockMs));
    }),
  );
  return sides.filter((_, index) => awaited[index]);
}

function serverOf({ record }: DiskObservation, side: Side): Extract<NbdServer, { host: string }> | null {
  const { source } = record[side].image;
  return source.kind === 'nbd' && !('socket' in source.server) ? source.server : null;
}
