import { readdir, readFile } from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';
import { watch } from 'chokidar';
import { errorText } from '../../errors.ts';
import { parsePolicy, ruleFor, type PolicyRule } from './policy-file.ts';

/**
 * Nothing happens for so long before the files are read: they may be written in several pieces, and what is put into a folder just
 * made is only seen by looking.
 */
const stillMs = 200;

export interface PolicyFile {
  /** The file's path; the folder's where that can't be read. */
  file: string;
  /** Why it can't be used; null if it can. What it said before then still holds. */
  problem: string | null;
}

/** The policy files of a folder, `*.toml` in the order of their names; a folder that is not there has none. */
export class PolicyFolder {
  readonly folder: string;
  #rules: PolicyRule[] = [];
  #files: PolicyFile[] = [];

  constructor(folder: string) {
    this.folder = resolve(folder);
  }

  get files(): PolicyFile[] {
    return this.#files;
  }

  ruleFor(domain: string): PolicyRule | null {
    return ruleFor(this.#rules, domain);
  }

  /** Reads all of it again. A file that has become unusable keeps the rule that it was; one that never was usable has none. */
  async read(): Promise<void> {
    let names: string[];
    try {
      names = (await readdir(this.folder)).filter((name) => name.endsWith('.toml') && !name.startsWith('.')).sort();
    } catch (error) {
      const missing = (error as NodeJS.ErrnoException).code === 'ENOENT';
      this.#files = missing ? [] : [{ file: this.folder, problem: `it can't be read: ${errorText(error)}` }];
      if (missing) this.#rules = [];
      return;
    }
    const outcomes = await Promise.all(names.map((name) => this.#readFile(join(this.folder, name))));
    this.#files = outcomes.map(({ file, problem }) => ({ file, problem }));
    this.#rules = outcomes.flatMap(({ rule }) => rule ?? []);
  }

  async #readFile(file: string): Promise<PolicyFile & { rule: PolicyRule | null }> {
    try {
      return { file, problem: null, rule: parsePolicy(await readFile(file, 'utf8'), file) };
    } catch (error) {
      return { file, problem: errorText(error), rule: this.#rules.find((rule) => rule.file === file) ?? null };
    }
  }

  /**
   * Reads it again whenever a file is written, replaced or removed, and calls back. The folder need not exist, but the one that it is
   * in must, and lie on a local file system. The promise is kept once changes are seen.
   * @returns what ends the watching.
   */
  async watch(changed: () => void): Promise<() => Promise<void>> {
    const parent = dirname(this.folder);
    const watcher = watch(parent, {
      depth: 1,
      ignoreInitial: true,
      ignored: (path) => path !== parent && path !== this.folder && dirname(path) !== this.folder,
    });
    // INVARIANT: one reading after the other; none is told after the watching ended.
    let reading = Promise.resolve();
    let ended = false;
    const reread = async (): Promise<void> => {
      await this.read();
      if (!ended) changed();
    };
    let timer: NodeJS.Timeout | undefined;
    watcher.on('all', () => {
      clearTimeout(timer);
      timer = setTimeout(() => void (reading = reading.then(reread)), stillMs);
    });
    watcher.on('error', (error) => {
      this.#files = [{ file: this.folder, problem: `it can't be watched: ${errorText(error)}` }];
    });
    await new Promise<void>((ready) => watcher.once('ready', ready));
    return async () => {
      ended = true;
      clearTimeout(timer);
      await watcher.close();
      await reading;
    };
  }
}
