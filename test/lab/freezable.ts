import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import type { Lab } from './lab.ts';
import { must, run } from './run.ts';

/**
 * A folder of the laboratory's mount namespace on a file system of its own, which can be frozen: then whoever writes to it waits in the
 * kernel, and reads are answered.
 */
export class FreezableFolder {
  readonly path: string;
  readonly #lab: Lab;

  private constructor(lab: Lab, path: string) {
    this.#lab = lab;
    this.path = path;
  }

  /** At this path, in this image that is made for it. */
  static async mount(lab: Lab, path: string, sizeBytes: number): Promise<FreezableFolder> {
    const image = `${path}.ext4`;
    await must('truncate', `--size=${sizeBytes}`, image);
    await must('mkfs.ext4', '-q', image);
    mkdirSync(path, { recursive: true });
    await must(...lab.libvirtd.namespace.command('mount', '-o', 'loop', image, path));
    return new FreezableFolder(lab, path);
  }

  /** A new, empty image in it, which only the namespace sees. */
  async image(name: string, sizeBytes: number): Promise<string> {
    const path = join(this.path, name);
    await must(...this.#lab.libvirtd.namespace.command('truncate', `--size=${sizeBytes}`, path));
    return path;
  }

  /** Whether a file in it has such a line, as grep(1) takes it. A file that is not there has none. */
  async holds(name: string, pattern: string): Promise<boolean> {
    const path = join(this.path, name);
    const [program, ...args] = this.#lab.libvirtd.namespace.command('grep', '-q', pattern, path);
    return (await run(program, args)).code === 0;
  }

  async freeze(): Promise<void> {
    await must(...this.#lab.libvirtd.namespace.command('fsfreeze', '--freeze', this.path));
  }

  /** Nothing, if it is not frozen. */
  async thaw(): Promise<void> {
    const [program, ...args] = this.#lab.libvirtd.namespace.command('fsfreeze', '--unfreeze', this.path);
    await run(program, args);
  }
}
