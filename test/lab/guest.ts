import { readFileSync } from 'node:fs';
import type { DomainDisk } from './domain-xml.ts';
import type { Libvirtd } from './libvirtd.ts';
import { Witness } from './oracle.ts';
import { waitFor } from './wait.ts';

/** A domain of the laboratory, with its witness. */
export class Guest {
  readonly name: string;
  readonly disks: readonly DomainDisk[];
  readonly serialPath: string;
  readonly witness: Witness;
  readonly #libvirtd: Libvirtd;

  constructor(libvirtd: Libvirtd, guest: { name: string; disks: readonly DomainDisk[]; serialPath: string }) {
    this.#libvirtd = libvirtd;
    this.name = guest.name;
    this.disks = guest.disks;
    this.serialPath = guest.serialPath;
    this.witness = new Witness(guest.serialPath);
  }

  /** Starts the domain, and returns when the witness has begun. */
  async start(): Promise<void> {
    const boots = this.witness.boots;
    await this.#libvirtd.mustVirsh('start', this.name);
    await this.witness.waitReady(60_000, boots + 1);
  }

  /** The hard reset; returns when the witness has begun again. */
  async reset(): Promise<void> {
    const boots = this.witness.boots;
    await this.#libvirtd.mustVirsh('reset', this.name);
    await this.witness.waitReady(60_000, boots + 1);
  }

  async pressPowerButton(): Promise<void> {
    await this.#libvirtd.mustVirsh('shutdown', this.name);
  }

  /**
   * Presses the power button, again if nothing follows; returns when the domain is off. QEMU 7.2 may sleep through libvirt's SIGTERM, which comes
   * while it drains the disks of the guest that has powered off (seen in 1 of 8 with I/O threads); a QMP command wakes it.
   */
  async shutdown(): Promise<void> {
    for (let presses = 1; ; presses++) {
      await this.pressPowerButton();
      try {
        await this.witness.waitStopped(20_000);
        break;
      } catch (error) {
        if (presses === 3) throw error;
      }
    }
    await waitFor(
      `domain ${this.name} to be shut off`,
      async () => {
        const state = await this.state();
        if (state.startsWith('in shutdown')) {
          await this.#libvirtd.virsh('qemu-monitor-command', this.name, '{"execute":"query-status"}');
        }
        return state.startsWith('shut off');
      },
      30_000,
      async () => `it is ${await this.state()}\n${this.qemuLog()}`,
    );
  }

  /** Pulls the plug. */
  async destroy(): Promise<void> {
    await this.#libvirtd.mustVirsh('destroy', this.name);
  }

  async suspend(): Promise<void> {
    await this.#libvirtd.mustVirsh('suspend', this.name);
  }

  async resume(): Promise<void> {
    await this.#libvirtd.mustVirsh('resume', this.name);
  }

  /** State and reason in libvirt's words: `running (booted)`, `paused (I/O error)`, `shut off (destroyed)`. */
  async state(): Promise<string> {
    return this.#libvirtd.mustVirsh('domstate', '--reason', this.name);
  }

  /** Waits for a state that begins with `state`. */
  async waitState(state: string, timeoutMs: number): Promise<void> {
    await waitFor(
      `domain ${this.name} to be ${state}`,
      async () => (await this.state()).startsWith(state),
      timeoutMs,
      async () => `it is ${await this.state()}\n${this.qemuLog()}`,
    );
  }

  /** The pid of the running domain's QEMU. */
  get qemuPid(): number {
    return this.#libvirtd.qemuPid(this.name);
  }

  /** The live XML of a running domain, the persistent one with `--inactive`. */
  async xml(...options: string[]): Promise<string> {
    return this.#libvirtd.mustVirsh('dumpxml', this.name, ...options);
  }

  /** An external snapshot: from now on its disk vda is this new overlay over what it was. */
  async takeSnapshot(overlay: string): Promise<void> {
    const spec = ['--disk-only', '--no-metadata', '--diskspec', `vda,file=${overlay}`];
    await this.#libvirtd.mustVirsh('snapshot-create-as', this.name, ...spec);
  }

  /** One QMP command; its `return`. */
  async qmp(execute: string, args: object = {}): Promise<unknown> {
    const command = JSON.stringify({ execute, arguments: args });
    const answer = JSON.parse(await this.#libvirtd.mustVirsh('qemu-monitor-command', this.name, command)) as {
      return?: unknown;
      error?: unknown;
    };
    if (answer.error !== undefined) throw new Error(`${execute}: ${JSON.stringify(answer.error)}`);
    return answer.return;
  }

  /** What QEMU was started with, and what it complained about. */
  qemuLog(): string {
    return readFileSync(`${this.#libvirtd.root}/log/qemu/${this.name}.log`, 'utf8').split('\n').slice(-20).join('\n');
  }

  close(): void {
    this.witness.close();
  }
}
