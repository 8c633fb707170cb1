import type { Stats } from 'node:fs';
import { watch, type FSWatcher } from 'chokidar';
import { localFiles } from './open-files.ts';

/** How soon a file that vanished is noticed. */
const intervalMs = 1_000;

const deadlineMs = 5_000;

/**
 * Notices that image files vanish, are replaced or become shorter, for many domains with one watcher. It asks for the files' state once a second
 * (docs/decisions/watching-primaries.md) and only where that can't hang: on local file systems.
 */
export class FileWatch {
  readonly #changed: (owner: string) => void;
  readonly #owned = new Map<string, string[]>();
  readonly #known = new Map<string, Pick<Stats, 'ino' | 'size'>>();
  #watcher: FSWatcher | null = null;

  /** `changed` is told whose file it was. */
  constructor(changed: (owner: string) => void) {
    this.#changed = changed;
  }

  /** Watches these files of an owner from now on, instead of those before. */
  async watch(owner: string, paths: string[]): Promise<void> {
    const before = this.#owned.get(owner) ?? [];
    if (paths.length === before.length && paths.every((path) => before.includes(path))) return;
    this.#owned.set(owner, paths);
    this.#forget(before.filter((path) => this.#ownersOf(path).length === 0));
    const added = await localFiles(
      paths.filter((path) => !before.includes(path)),
      { deadlineMs },
    );
    const wanted = added.filter((path) => this.#ownersOf(path).length > 0);
    if (wanted.length > 0) this.#watched().add(wanted);
  }

  async close(): Promise<void> {
    await this.#watcher?.close();
  }

  #watched(): FSWatcher {
    if (this.#watcher !== null) return this.#watcher;
    const watcher = watch([], { usePolling: true, interval: intervalMs, binaryInterval: intervalMs, alwaysStat: true });
    watcher.on('add', (path, stats) => this.#seen(path, stats));
    watcher.on('change', (path, stats) => this.#seen(path, stats));
    watcher.on('unlink', (path) => this.#tell(path));
    // What can't be watched is looked at with the domain, once a minute.
    watcher.on('error', () => undefined);
    this.#watcher = watcher;
    return watcher;
  }

  #seen(path: string, now: Stats | undefined): void {
    const before = this.#known.get(path);
    if (now !== undefined) this.#known.set(path, now);
    if (before !== undefined && (before.ino !== now?.ino || now.size < before.size)) this.#tell(path);
  }

  #tell(path: string): void {
    for (const owner of this.#ownersOf(path)) this.#changed(owner);
  }

  #forget(paths: string[]): void {
    if (paths.length === 0) return;
    this.#watcher?.unwatch(paths);
    for (const path of paths) this.#known.delete(path);
  }

  #ownersOf(path: string): string[] {
    return [...this.#owned].flatMap(([owner, paths]) => (paths.includes(path) ? [owner] : []));
  }
}
