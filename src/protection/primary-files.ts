import { localFiles, lookAtOpenFiles, type LostFile } from '../health/open-files.ts';
import { pathOf } from '../storage/path.ts';
import { qemuPid } from '../libvirt/pid-file.ts';
import type { DiskMemory } from './disk-memory.ts';
import type { DiskObservation } from './observation.ts';

/** So long a file must be away before it is taken for gone: somebody may move it away and back. */
const confirmMs = 1_000;

/** Files are looked at so often although nothing was noticed, and so often once one is gone. */
const idleMs = 60_000;
const goneMs = 10_000;

/** QEMU rounds the size of a raw image up to whole sectors. */
const sectorBytes = 512;

/** A local file system answers at once. */
const deadline = { deadlineMs: 2_000 };

/** A file of a primary as it should be, in bytes. */
interface Extent {
  /** The disk's size, which tells whether somebody has resized it. */
  diskBytes: number;
  leastBytes: number;
}

/**
 * Whether the files that a domain's primaries consist of are still where QEMU opened them, and whole. QEMU itself notices nothing: it
 * writes on into what no path leads to, and all of that is lost when it ends; and what somebody cut off reads as zeros.
 */
export class PrimaryFiles {
  /** Files that were away at the last look, and since when. */
  #away = new Map<string, number>();
  readonly #extents = new Map<string, Extent>();
  /** Files that have been too short, even if the guest's writes have made them long again. */
  readonly #cut = new Set<string>();
  readonly #isLocal = new Map<string, boolean>();
  #dueAtMs = 0;

  /** Milliseconds until the next look is due. */
  get dueInMs(): number {
    return Math.max(0, this.#dueAtMs - Date.now());
  }

  /** Something was noticed. */
  suspect(): void {
    this.#dueAtMs = 0;
  }

  /**
   * Looks at the files that QEMU has open now, whatever was moved by whom; `lost` is told of a primary that is gone from now on.
   * `patient`: a file that has only just gone may come back.
   */
  async look(
    domain: string,
    disks: DiskObservation[],
    memoryOf: (dev: string) => DiskMemory,
    lost: (dev: string, why: string) => void,
    { patient }: { patient: boolean },
  ): Promise<void> {
    this.#dueAtMs = Date.now() + idleMs;
    const pid = qemuPid(domain);
    const local = await this.#localFiles(disks.flatMap(primaryFiles));
    const looked = pid === null ? null : await lookAtOpenFiles(pid, local, deadline);
    if (looked === null) return;
    const found: Damaged[] = [...looked.lost, ...this.#cutOff(disks, looked.sizes)];
    const now = Date.now();
    this.#away = new Map(found.map(({ path }) => [path, this.#away.get(path) ?? now]));
    if (found.length > 0) this.#dueAtMs = now + confirmMs;
    for (const disk of disks) {
      const memory = memoryOf(disk.record.dev);
      const gone = found.find(
        ({ path }) =>
          primaryFiles(disk).includes(path) && (!patient || now - (this.#away.get(path) ?? now) >= confirmMs),
      );
      const why = gone === undefined ? '' : whyDamaged(gone);
      if (gone !== undefined && memory.primaryGone === null) lost(disk.record.dev, why);
      if (gone !== undefined) this.#dueAtMs = now + goneMs;
      memory.primaryGone = gone === undefined ? null : { path: gone.path, deleted: gone.is === 'deleted', why };
    }
  }

  /** Those of these files, with their sizes, that are shorter than they were, or than a raw disk is. */
  #cutOff(disks: DiskObservation[], sizes: ReadonlyMap<string, number>): Damaged[] {
    for (const path of this.#extents.keys()) if (!sizes.has(path)) this.#forget(path);
    for (const disk of disks) {
      const diskBytes = disk.graph?.sizeBytes ?? 0;
      for (const path of primaryFiles(disk)) {
        const bytes = sizes.get(path);
        if (bytes === undefined) continue;
        if (this.#extents.get(path)?.diskBytes !== diskBytes) this.#forget(path);
        const leastBytes = this.#extents.get(path)?.leastBytes ?? rawBytes(disk, path);
        if (bytes < leastBytes) this.#cut.add(path);
        this.#extents.set(path, { diskBytes, leastBytes: Math.max(leastBytes, bytes) });
      }
    }
    return [...this.#cut].map((path) => ({ path, is: 'cut off' }));
  }

  #forget(path: string): void {
    this.#extents.delete(path);
    this.#cut.delete(path);
  }

  /** What a path lies on is asked once: the answer may take long where it is not local. */
  async #localFiles(paths: string[]): Promise<string[]> {
    const unknown = paths.filter((path) => !this.#isLocal.has(path));
    const local = await localFiles(unknown, deadline);
    for (const path of unknown) this.#isLocal.set(path, local.includes(path));
    return paths.filter((path) => this.#isLocal.get(path));
  }
}

/** The files of a primary in use, backing files included. */
export function primaryFiles({ record, graph }: DiskObservation): string[] {
  if (!record.primary.current || graph?.primary == null) return [];
  return [...new Set(graph.primary.images)].filter((image) => /^\/(?!dev\/)/.test(image));
}

interface Damaged {
  path: string;
  is: LostFile['is'] | 'cut off';
}

function whyDamaged({ path, is }: Damaged): string {
  const so = `'${path}' was ${is} while QEMU has it open`;
  return is === 'cut off' ? `${so}: what lay behind its end reads as zeros` : `${so}: it is lost when QEMU ends`;
}

/** How long the file of a raw image is at least; 0 if it is another format, or an image behind it. */
function rawBytes({ record: { primary }, graph }: DiskObservation, path: string): number {
  const isIt = primary.image.format === 'raw' && pathOf(primary.image) === path;
  return isIt && graph !== null ? graph.sizeBytes - sectorBytes + 1 : 0;
}
