import { closeSync, type FSWatcher, openSync, readSync, watch } from 'node:fs';
import { checkBlocks, type CopyReport, type Image, type Promised } from './copies.ts';
import type { RecordNumber } from './record.ts';
import { tail } from './run.ts';
import { within } from './wait.ts';

export interface Ack extends RecordNumber {
  dev: string;
  block: number;
  /** How long the guest waited, by its own clock, which stands still while the domain is paused. */
  latencyMicros: number;
  /** When the line was seen here: milliseconds of `performance.now()`. */
  atMs: number;
}

/** A record that the guest was told has failed, or that did not read back. */
export interface GuestError {
  kind: 'ERR' | 'BAD';
  dev: string;
  n: number;
  /** ERR: the errno. BAD: the block. */
  detail: number;
}

/**
 * Reads a guest's serial console as it is written, and remembers what the guest was promised: for each block of each disk
 * the last acknowledged record. The lines are described in witness.c.
 */
export class Witness {
  readonly #path: string;
  readonly #file: number;
  readonly #watcher: FSWatcher;
  readonly #listeners = new Set<() => void>();
  readonly #ackListeners = new Set<(ack: Ack) => void>();
  readonly #promised = new Map<string, Map<number, RecordNumber>>();
  readonly #counts = new Map<string, number>();
  readonly #errors: GuestError[] = [];
  readonly #chunk = Buffer.alloc(1 << 16);
  #rest = '';
  readonly #boots: number[] = [];
  #stopped = false;
  #lastAckAtMs: number | undefined;

  /** Follows the file at `serialPath`, which must exist, from its beginning. */
  constructor(serialPath: string) {
    this.#path = serialPath;
    this.#file = openSync(serialPath, 'r');
    this.#watcher = watch(serialPath, { persistent: false }, () => this.#read());
    this.#read();
  }

  /** How many writes were acknowledged so far, on one disk or on all. */
  acknowledged(dev?: string): number {
    if (dev !== undefined) return this.#counts.get(dev) ?? 0;
    return [...this.#counts.values()].reduce((sum, count) => sum + count, 0);
  }

  /** Everything that the guest saw go wrong. */
  get errors(): readonly GuestError[] {
    return this.#errors;
  }

  /** How many times the witness began. */
  get boots(): number {
    return this.#boots.length;
  }

  /** Whether the guest has stopped writing since its last boot, because of a power button. */
  get stopped(): boolean {
    return this.#stopped;
  }

  /** When the last acknowledgement was seen: milliseconds of `performance.now()`. */
  get lastAckAtMs(): number | undefined {
    return this.#lastAckAtMs;
  }

  /** Calls `listener` at each acknowledgement, until the function returned is called. */
  onAck(listener: (ack: Ack) => void): () => void {
    this.#ackListeners.add(listener);
    return () => this.#ackListeners.delete(listener);
  }

  /** Waits for `count` acknowledgements more than there are now. */
  async waitForAcks(count: number, timeoutMs: number, dev?: string): Promise<void> {
    const goal = this.acknowledged(dev) + count;
    const what = `${count} more acknowledged writes${dev === undefined ? '' : ` on ${dev}`}`;
    await this.#until(what, () => this.acknowledged(dev) >= goal, timeoutMs);
  }

  /** Waits until the guest has booted for the `boot`th time (1: the first). */
  async waitReady(timeoutMs: number, boot = 1): Promise<void> {
    await this.#until(`boot ${boot} of the guest`, () => this.boots >= boot, timeoutMs);
  }

  /** Waits for the guest's last words before it powers off. */
  async waitStopped(timeoutMs: number): Promise<void> {
    await this.#until('the guest to stop writing', () => this.#stopped, timeoutMs);
  }

  /** What must be on each copy of the disk `dev` from now on: for each block the record that is told, or a later one. */
  promised(dev: string): Promised {
    this.#read();
    return { boots: this.#boots, records: new Map(this.#promised.get(dev)) };
  }

  /** Whether a copy of the disk `dev` holds every write that was acknowledged before this call, or a later one. */
  async checkCopy(image: Image, dev: string): Promise<CopyReport & { acknowledged: number }> {
    const promised = this.promised(dev);
    return { acknowledged: this.acknowledged(dev), ...(await checkBlocks(image, dev, promised)) };
  }

  close(): void {
    this.#watcher.close();
    closeSync(this.#file);
  }

  async #until(what: string, reached: () => boolean, timeoutMs: number): Promise<void> {
    this.#read();
    if (reached()) return;
    let check = (): void => undefined;
    const done = new Promise<void>((resolve) => {
      check = (): void => {
        if (reached()) resolve();
      };
      this.#listeners.add(check);
    });
    try {
      await within(what, done, timeoutMs, () => this.#describe());
    } finally {
      this.#listeners.delete(check);
    }
  }

  #describe(): string {
    const errors = this.#errors.slice(-5).map((error) => JSON.stringify(error));
    return `boots ${this.boots}, acknowledged ${this.acknowledged()}, errors ${errors.join()}\n${tail(this.#path)}`;
  }

  #read(): void {
    for (;;) {
      const length = readSync(this.#file, this.#chunk, 0, this.#chunk.length, null);
      if (length === 0) return;
      const lines = (this.#rest + this.#chunk.toString('latin1', 0, length)).split('\n');
      this.#rest = lines.pop() ?? '';
      for (const line of lines) this.#parse(line.trimEnd());
      for (const listener of [...this.#listeners]) listener();
    }
  }

  #parse(line: string): void {
    const ack = /^ACK (\w+) (\d+) (\d+) (\d+)$/.exec(line);
    if (ack !== null) {
      this.#acknowledge(ack[1]!, Number(ack[2]), Number(ack[3]), Number(ack[4]));
      return;
    }
    const error = /^(ERR|BAD) (\w+) (\d+) (\d+)$/.exec(line);
    if (error !== null) {
      const kind = error[1] === 'ERR' ? 'ERR' : 'BAD';
      this.#errors.push({ kind, dev: error[2]!, n: Number(error[3]), detail: Number(error[4]) });
      return;
    }
    const ready = /^WITNESS READY epoch=(\d+)/.exec(line);
    if (ready !== null) {
      this.#boots.push(Number(ready[1]));
      this.#stopped = false;
    } else if (line === 'WITNESS STOPPED') {
      this.#stopped = true;
    }
  }

  #acknowledge(dev: string, n: number, block: number, latencyMicros: number): void {
    const atMs = performance.now();
    const epoch = this.#boots.at(-1) ?? 0;
    let blocks = this.#promised.get(dev);
    if (blocks === undefined) this.#promised.set(dev, (blocks = new Map<number, RecordNumber>()));
    blocks.set(block, { epoch, n });
    this.#counts.set(dev, this.acknowledged(dev) + 1);
    this.#lastAckAtMs = atMs;
    for (const listener of [...this.#ackListeners]) listener({ dev, n, block, epoch, latencyMicros, atMs });
  }
}
