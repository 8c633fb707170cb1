import assert from 'node:assert/strict';
import { open, unlink } from 'node:fs/promises';
import { compareCopies, type Image } from '../lab/copies.ts';
import type { Guest } from '../lab/guest.ts';
import { recordSize } from '../lab/record.ts';
import { must } from '../lab/run.ts';
import { patienceMs } from './scene.ts';

/** RPO = 0: each of these copies holds every write that the guest was told is safe, and the guest saw no error. */
export async function assertNothingLost(guest: Guest, copies: readonly Image[], dev = 'vda'): Promise<void> {
  assert.deepEqual(guest.witness.errors, [], 'guest errors');
  for (const copy of copies) {
    const { missing, acknowledged } = await guest.witness.checkCopy(copy, dev);
    const boots = guest.witness.promised(dev).boots.join();
    assert.deepEqual(
      missing,
      [],
      `lost on ${JSON.stringify(copy)}, after ${acknowledged} writes in the boots ${boots}`,
    );
    assert.ok(acknowledged > 0, 'the guest has written nothing');
  }
}

/** Shuts the guest down; then nothing is lost on any of the copies, and they are identical. */
export async function endWell(guest: Guest, copies: readonly Image[], dev = 'vda'): Promise<void> {
  await guest.shutdown();
  await assertNothingLost(guest, copies, dev);
  const [first, ...others] = copies;
  for (const other of others) await assertIdentical(first!, other);
}

/** For copies that nobody writes to now. */
export async function assertIdentical(a: Image, b: Image): Promise<void> {
  assert.deepEqual(await compareCopies(a, b), { identical: true, detail: 'Images are identical.' });
}

export async function goesOn(guest: Guest, writes = 30, dev?: string): Promise<void> {
  await guest.witness.waitForAcks(writes, patienceMs, dev);
}

/**
 * A mark in a raw image where the guest never writes (witness.blocks keeps it out). A delta leaves it there; a full copy
 * takes it away.
 */
export class Mark {
  readonly #path: string;
  readonly #block: number;
  readonly #text = Buffer.alloc(recordSize, 'mark');

  /** `block` counts records' blocks. */
  constructor(path: string, block: number) {
    this.#path = path;
    this.#block = block;
  }

  async set(): Promise<void> {
    await writeBlock(this.#path, this.#block, this.#text);
  }

  /** Without a trace in the file's times, by which a copy that is closed is known to be as it was. */
  async slipIn(): Promise<void> {
    const times = `${this.#path}.times`;
    await must('touch', '--reference', this.#path, times);
    await this.set();
    await must('touch', '--reference', times, this.#path);
    await unlink(times);
  }

  async clear(): Promise<void> {
    await writeBlock(this.#path, this.#block, Buffer.alloc(recordSize));
  }

  async isThere(): Promise<boolean> {
    const file = await open(this.#path);
    try {
      const found = Buffer.alloc(recordSize);
      await file.read(found, 0, recordSize, this.#block * recordSize);
      return found.equals(this.#text);
    } finally {
      await file.close();
    }
  }
}

/** Writes one block of a raw image behind everybody's back. */
export async function writeBlock(path: string, block: number, content: Buffer): Promise<void> {
  const file = await open(path, 'r+');
  try {
    await file.write(content, 0, recordSize, block * recordSize);
    await file.sync();
  } finally {
    await file.close();
  }
}
