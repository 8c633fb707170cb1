import { CdpError } from '../errors.ts';
import type { Instant } from '../graph/instant.ts';
import { requireSpaceIn } from '../storage/free-space.ts';
import { compareExports, dirtyExtents, joined, splitBy, sumOf, type Extent } from '../sync/compare.ts';
import type { DiskVerdict } from './model.ts';

/** What a verify wants of its disk now, for the planner. */
export type VerifyView =
  | { is: 'none' }
  | { is: 'wanted' }
  /** It is being compared. */
  | { is: 'taken' }
  /** These extents of the mirror are to be brought up to date. */
  | { is: 'repair'; extents: Extent[] };

export interface VerifyOrder {
  dev: string;
  sizeBytes: number;
  /** Of each copy; 0 is unlimited. */
  maxBytesPerS: number;
  /** For what the guest overwrites. */
  folder: string;
  /** Has the loop look at the domain and do what the view wants; kept when it is done. */
  looked: () => Promise<void>;
}

/**
 * A block that differs at one instant may be one whose buffer the guest changed while it was being written. It is accused when it differs at
 * the next instant too and nothing was written to it in between; what was is looked at again, so many times in all.
 */
const maxInstants = 8;

/** Copies that differ in more blocks are not mended block by block. */
const maxBlocks = 1_000;

const spaceLookMs = 1_000;

/** The copies of one disk are being compared. */
export class Verification {
  view: VerifyView = { is: 'none' };
  /** Counts the instants. */
  instants = 0;
  progress: { done: number; total: number };
  readonly #order: VerifyOrder;
  readonly #stop = new AbortController();
  #instant: Instant | null = null;

  constructor(order: VerifyOrder) {
    this.#order = order;
    this.progress = { done: 0, total: order.sizeBytes };
  }

  /** The loop has taken the instant that was wanted. */
  taken(instant: Instant): void {
    this.#instant = instant;
    this.instants += 1;
    this.view = { is: 'taken' };
  }

  /** What was to be repaired is marked, and will be copied by a delta. */
  marked(): void {
    this.view = { is: 'none' };
  }

  /** It can't go on. Only the first reason is told. */
  stop(error: Error): void {
    if (!this.#stop.signal.aborted) this.#stop.abort(error);
    this.view = { is: 'none' };
  }

  /** @throws CdpError why the copies could not be compared to the end. */
  async run(): Promise<DiskVerdict> {
    const watch = setInterval(() => void this.#watchSpace(), spaceLookMs);
    try {
      return await this.#compare();
    } finally {
      clearInterval(watch);
      this.view = { is: 'none' };
      await this.#order.looked();
    }
  }

  /** Asks the loop for what the primary has in these extents to be copied onto the mirror. */
  async repair(extents: Extent[]): Promise<void> {
    this.view = { is: 'repair', extents };
    await this.#order.looked();
    this.#stop.signal.throwIfAborted();
    if (!this.#stillWants('repair')) return;
    this.view = { is: 'none' };
    throw new CdpError({
      code: 'repair-failed',
      message: `what differs on ${this.#order.dev} could not be repaired now: something else is done to the disk`,
      hint: 'virt-cdp status; verify again, with --repair',
    });
  }

  /** The loop has not done it. */
  #stillWants(is: VerifyView['is']): boolean {
    return this.view.is === is;
  }

  async #compare(): Promise<DiskVerdict> {
    const { dev, sizeBytes } = this.#order;
    let candidates: Extent[] = [{ offset: 0, length: sizeBytes }];
    let differences: Extent[] = [];
    let complete = true;
    let asOf = '';
    for (let number = 0; number < maxInstants && candidates.length > 0; number++) {
      const instant = await this.#take();
      const first = number === 0;
      if (first) asOf = new Date().toISOString();
      const written = instant.written === null ? [] : await dirtyExtents(instant, instant.written, this.#stop.signal);
      const found = await compareExports(instant, candidates, {
        maxBytesPerS: this.#order.maxBytesPerS,
        maxBlocks,
        progress: (bytes) => (this.progress.done += first ? bytes : 0),
        signal: this.#stop.signal,
      });
      if (first) {
        candidates = found.differing;
        complete = found.complete;
        continue;
      }
      const { apart, touched } = splitBy(found.differing, written);
      differences = joined(differences, apart);
      candidates = touched;
    }
    return {
      dev,
      asOf,
      comparedBytes: this.progress.done,
      differences,
      differingBytes: sumOf(differences),
      unsettledBytes: sumOf(candidates),
      complete,
      repairing: false,
    };
  }

  async #take(): Promise<Instant> {
    const { signal } = this.#stop;
    signal.throwIfAborted();
    this.view = { is: 'wanted' };
    await this.#order.looked();
    signal.throwIfAborted();
    if (this.#instant !== null && !this.#stillWants('wanted')) return this.#instant;
    throw new CdpError({
      code: 'not-protected-now',
      message: `the copies of ${this.#order.dev} can't be compared now: it is not protected, or something else is done to it`,
      hint: 'virt-cdp status says what; only copies that both are current can be compared',
    });
  }

  /** What the guest overwrites goes to the scratch folder: before the last space is gone, the verify is given up. */
  async #watchSpace(): Promise<void> {
    const { folder } = this.#order;
    try {
      await requireSpaceIn(folder, 0, {
        what: 'what the guest overwrites during a verify',
        hint: 'make room, name another folder by verify.scratch, or verify when the guest writes less',
        deadlineMs: 5_000,
      });
    } catch (error) {
      this.stop(error as Error);
      await this.#order.looked();
    }
  }
}

/** Of a verify that was given up, because the protection goes first. */
export function verifyStopped(dev: string, why: string): CdpError {
  return new CdpError({
    code: 'verify-stopped',
    message: `the verify of ${dev} was given up: ${why}`,
    hint: 'verify again when the disk is protected: virt-cdp status',
  });
}
