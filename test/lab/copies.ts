import { type FileHandle, mkdtemp, open, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { compareRecords, readRecord, type RecordNumber, recordSize, type WitnessRecord } from './record.ts';
import { must, run } from './run.ts';

/** An image as qemu-img takes it: a path, an NBD URI or a `json:` file name; the format is probed unless told. */
export type Image = string | { filename: string; format: 'raw' | 'qcow2' };

/** What the guest was told to be safe on one disk. */
export interface Promised {
  /** The epochs of the guest's boots so far, first to last. */
  boots: readonly number[];
  /** By block: the last record that was acknowledged. */
  records: ReadonlyMap<number, RecordNumber>;
}

/** An acknowledged write that a copy does not hold. */
export interface Missing {
  block: number;
  expected: RecordNumber;
  found: WitnessRecord | 'empty' | 'damaged';
}

export interface CopyReport {
  /** Blocks that were ever acknowledged; all of them were looked at. */
  checkedBlocks: number;
  missing: Missing[];
}

/**
 * Whether a copy of the disk `dev` holds, for each block, the promised record or a later one. The image may be in use; of
 * a qcow2 image in use, only what its QEMU has written out is seen.
 */
export async function checkBlocks(image: Image, dev: string, { boots, records }: Promised): Promise<CopyReport> {
  const missing: Missing[] = [];
  await withRaw(image, async (raw) => {
    for (const [block, record] of records) {
      const found = await recordAt(raw, block);
      const holds =
        typeof found === 'object' &&
        found.dev === dev &&
        found.block === block &&
        compareRecords(found, record, boots) >= 0;
      if (!holds) missing.push({ block, expected: record, found });
    }
  });
  return { checkedBlocks: records.size, missing };
}

/**
 * For guests with `witness.ordered=1`, whose record n reaches the second disk only when the first has acknowledged it: the
 * blocks where the second disk's copy is ahead of the first one's. Empty if the two are copies as of one moment. `boots` as in
 * `Promised`.
 */
export async function outOfOrder(first: Image, second: Image, boots: readonly number[]): Promise<number[]> {
  const blocks: number[] = [];
  await withRaw(second, async (later) =>
    withRaw(first, async (earlier) => {
      const { size } = await later.stat();
      for (let block = 0; block < size / recordSize; block++) {
        const after = await recordAt(later, block);
        if (typeof after !== 'object') continue;
        const before = await recordAt(earlier, block);
        if (typeof before !== 'object' || compareRecords(before, after, boots) < 0) blocks.push(block);
      }
    }),
  );
  return blocks;
}

/**
 * The record of a copy that was written last: of guests with `witness.ordered=1` its number tells how far the copy goes.
 * @throws Error when there is none.
 */
export async function highestRecord(image: Image, boots: readonly number[]): Promise<WitnessRecord> {
  let highest: WitnessRecord | undefined;
  await withRaw(image, async (raw) => {
    const { size } = await raw.stat();
    for (let block = 0; block < size / recordSize; block++) {
      const found = await recordAt(raw, block);
      if (typeof found === 'object' && (highest === undefined || compareRecords(found, highest, boots) > 0))
        highest = found;
    }
  });
  if (highest === undefined) throw new Error(`${fileName(image)} holds no record`);
  return highest;
}

/** Whether two images have the same content, and where they differ first. Zeros and holes are the same. */
export async function compareCopies(a: Image, b: Image): Promise<{ identical: boolean; detail: string }> {
  const formats = [...formatOption('-f', a), ...formatOption('-F', b)];
  const { code, stdout, stderr } = await run('qemu-img', ['compare', '-U', ...formats, fileName(a), fileName(b)]);
  if (code > 1) throw new Error(`qemu-img compare: ${stderr}`);
  return { identical: code === 0, detail: stdout.trim() };
}

function fileName(image: Image): string {
  return typeof image === 'string' ? image : image.filename;
}

function formatOption(option: string, image: Image): string[] {
  return typeof image === 'string' ? [] : [option, image.format];
}

/** Reads an image's guest-visible content, from a raw, sparse transcript that is removed afterwards. */
async function withRaw(image: Image, use: (raw: FileHandle) => Promise<void>): Promise<void> {
  const scratch = await mkdtemp(join(tmpdir(), 'virt-cdp-copy-'));
  try {
    const path = join(scratch, 'raw');
    await must('qemu-img', 'convert', '-U', ...formatOption('-f', image), '-O', 'raw', fileName(image), path);
    const raw = await open(path);
    try {
      await use(raw);
    } finally {
      await raw.close();
    }
  } finally {
    await rm(scratch, { recursive: true, force: true });
  }
}

async function recordAt(raw: FileHandle, block: number): Promise<WitnessRecord | 'empty' | 'damaged'> {
  const content = Buffer.alloc(recordSize);
  await raw.read(content, 0, recordSize, block * recordSize);
  return readRecord(content);
}
