import { writeFileSync } from 'node:fs';
import type { Lab } from './lab.ts';
import { Daemon, must, run } from './run.ts';
import type { NbdServer } from './storage.ts';
import { waitFor } from './wait.ts';

/**
 * What an NBD server serves, as a file in the laboratory's mount namespace: whoever reads or writes it while it hangs waits in the kernel,
 * as with a network file system, and can't even be killed.
 */
export class FuseFile {
  readonly path: string;
  readonly #lab: Lab;
  readonly #daemon: Daemon;

  private constructor(path: string, lab: Lab, daemon: Daemon) {
    this.path = path;
    this.#lab = lab;
    this.#daemon = daemon;
  }

  static async mount(lab: Lab, name: string, { address }: NbdServer): Promise<FuseFile> {
    if (!('socket' in address)) throw new Error('the server must be on a unix socket');
    const path = lab.path(name);
    writeFileSync(path, '');
    const uri = `nbd+unix:///${address.export}?socket=${address.socket}`;
    const [program, ...args] = lab.libvirtd.namespace.command('nbdfuse', path, uri);
    const daemon = new Daemon(program, args, { logPath: `${path}.log` });
    await waitFor(
      `nbdfuse to show ${path}`,
      async () => {
        if (!daemon.running) throw new Error(`nbdfuse ended\n${daemon.logTail()}`);
        const size = await must(...lab.libvirtd.namespace.command('stat', '--format=%s', path));
        return Number(size) > 0;
      },
      10_000,
      () => daemon.logTail(),
    );
    return new FuseFile(path, lab, daemon);
  }

  /** From now on whoever wants anything of it waits. */
  hang(): void {
    process.kill(this.#daemon.pid, 'SIGSTOP');
  }

  unhang(): void {
    process.kill(this.#daemon.pid, 'SIGCONT');
  }

  /** Whoever waits for it gets an error, at last, and so does everybody from now on. */
  async abort(): Promise<void> {
    await this.#umount('--force');
  }

  async unmount(): Promise<void> {
    await this.abort();
    await this.#umount('--lazy');
    await this.#daemon.end('SIGKILL');
  }

  /** Refused while somebody has it open, or if it was done already. */
  async #umount(how: '--force' | '--lazy'): Promise<void> {
    const [program, ...args] = this.#lab.libvirtd.namespace.command('umount', how, this.path);
    await run(program, args);
  }
}
