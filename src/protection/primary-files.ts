import { localFiles, lostFiles } from '../health/open-files.ts';
import { qemuPid } from '../libvirt/pid-file.ts';
import type { DiskMemory } from './disk-memory.ts';
import type { DiskObservation } from './observation.ts';

/** So long a file must be away before it is taken for gone: somebody may move it away and back. */
const confirmMs = 1_000;

/** Files are looked at so often although nothing was noticed, and so often once one is gone. */
const idleMs = 60_000;
const goneMs = 10_000;

/** A local file system answers at once. */
const deadline = { deadlineMs: 2_000 };

/**
 * Whether the files that a domain's primaries consist of are still where QEMU opened them. QEMU itself notices nothing: it writes on
 * into what no path leads to, and all of that is lost when it ends.
 */
export class PrimaryFiles {
  /** Files that were away at the last look, and since when. */
  #away = new Map<string, number>();
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
    const found = pid === null ? null : await lostFiles(pid, local, deadline);
    if (found === null) return;
    const now = Date.now();
    this.#away = new Map(found.map(({ path }) => [path, this.#away.get(path) ?? now]));
    if (found.length > 0) this.#dueAtMs = now + confirmMs;
    for (const disk of disks) {
      const memory = memoryOf(disk.record.dev);
      const gone = found.find(
        ({ path }) =>
          primaryFiles(disk).includes(path) && (!patient || now - (this.#away.get(path) ?? now) >= confirmMs),
      );
      const why =
        gone === undefined ? '' : `'${gone.path}' was ${gone.is} while QEMU has it open: it is lost when QEMU ends`;
      if (gone !== undefined && memory.primaryGone === null) lost(disk.record.dev, why);
      if (gone !== undefined) this.#dueAtMs = now + goneMs;
      memory.primaryGone = gone === undefined ? null : { path: gone.path, deleted: gone.is === 'deleted', why };
    }
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
