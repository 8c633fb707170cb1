import { posix } from 'node:path';
import { errorText } from '../../errors.ts';
import type { Image } from '../../domain/image.ts';
import type { Log } from '../../log.ts';
import { pathOf } from '../../storage/path.ts';
import { resolveImage } from '../../storage/tools.ts';
import { writeNames, type NameTable } from './name-table.ts';

/**
 * Where the paths of this host's images lead to, learnt by other processes ahead of time, because in a hook no storage may be touched:
 * a symbolic link of which no definition spoke before is not known.
 */
export class RealNames {
  readonly #storePath: string;
  readonly #log: Log;
  readonly #names = new Map<string, string>();
  readonly #asked = new Set<string>();
  /** One process after the other. */
  #queue: Promise<unknown> = Promise.resolve();

  constructor(storePath: string, log: Log) {
    this.#storePath = storePath;
    this.#log = log;
  }

  get table(): NameTable {
    return this.#names;
  }

  /** Asks for the images that were never asked for. Whether the table has changed. */
  learnNew(images: Image[], deadlineMs: number): Promise<boolean> {
    return this.learn(
      images.filter((image) => !this.#asked.has(pathOf(image) ?? '')),
      deadlineMs,
    );
  }

  /** Asks for these images. Whether the table has changed. */
  learn(images: Image[], deadlineMs: number): Promise<boolean> {
    const withPaths = images.filter((image) => pathOf(image) !== null);
    for (const image of withPaths) this.#asked.add(pathOf(image) ?? '');
    const learnt = this.#queue.then(async () => {
      let changed = false;
      for (const image of withPaths) changed = (await this.#ask(image, deadlineMs)) || changed;
      if (changed) await writeNames(this.#storePath, this.#names);
      return changed;
    });
    this.#queue = learnt.catch(() => undefined);
    return learnt;
  }

  async #ask(image: Image, deadlineMs: number): Promise<boolean> {
    const name = posix.normalize(pathOf(image) ?? '');
    try {
      const real = pathOf(await resolveImage(image, { deadlineMs })) ?? name;
      const known = this.#names.get(name) ?? name;
      if (real === name) this.#names.delete(name);
      else this.#names.set(name, real);
      return real !== known;
    } catch (error) {
      this.#log.debug('where a path leads to is not known', { path: name, error: errorText(error) });
      return false;
    }
  }
}
