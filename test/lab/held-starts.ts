import { existsSync, writeFileSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import type { Libvirtd } from './libvirtd.ts';
import { must } from './run.ts';
import { waitFor } from './wait.ts';

/** Somebody else's hook, in name order behind ours: it holds the start of the domain `held`, and refuses it when it is let go. */
export class HeldStarts {
  readonly #gate: string;
  readonly #isHeld: string;

  private constructor(root: string) {
    this.#gate = join(root, 'gate');
    this.#isHeld = join(root, 'is-held');
  }

  static async install(libvirtd: Libvirtd): Promise<HeldStarts> {
    const starts = new HeldStarts(libvirtd.root);
    await must('mkfifo', starts.#gate);
    const hold = `: >'${starts.#isHeld}'; read -r _ <'${starts.#gate}'; exit 1`;
    const hook = `#!/bin/sh\ncase "$1 $2" in 'held prepare') ${hold} ;; esac\n`;
    writeFileSync(join(libvirtd.hooksDir, 'qemu.d/90-hold'), hook, { mode: 0o755 });
    libvirtd.reload();
    return starts;
  }

  async waitHeld(timeoutMs: number): Promise<void> {
    await waitFor('the hook to hold the start', () => existsSync(this.#isHeld), timeoutMs);
  }

  async letGo(): Promise<void> {
    const gate = await open(this.#gate, 'w');
    await gate.write('go\n');
    await gate.close();
  }
}
