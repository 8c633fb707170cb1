import { crc32 } from 'node:zlib';

/** The unit that the witness writes, in bytes. */
export const recordSize = 4096;

/** A record's place in the order of writes to one block: boots come first, then numbers within the boot. */
export interface RecordNumber {
  /** Which boot: microseconds since 1970 when its witness began, by the guest's clock, which is not sure to order the boots. */
  epoch: number;
  n: number;
}

export interface WitnessRecord extends RecordNumber {
  dev: string;
  block: number;
}

/** Offsets in bytes of `struct record` in witness.c. */
const at = { epoch: 8, n: 16, block: 24, dev: 40, devEnd: 56, checksum: 56, checksumEnd: 60 };

/** Reads one 4 KiB block: a whole record, or `empty` (zeros only), or `damaged` (anything else). */
export function readRecord(block: Buffer): WitnessRecord | 'empty' | 'damaged' {
  if (block.subarray(0, 8).toString('latin1') !== 'WITNESS1') return isZero(block) ? 'empty' : 'damaged';
  const head = crc32(block.subarray(0, at.checksum));
  const sum = crc32(block.subarray(at.checksumEnd), crc32(Buffer.alloc(4), head));
  if (sum !== block.readUInt32LE(at.checksum)) return 'damaged';
  return {
    epoch: Number(block.readBigUInt64LE(at.epoch)),
    n: Number(block.readBigUInt64LE(at.n)),
    block: Number(block.readBigUInt64LE(at.block)),
    dev: block.subarray(at.dev, at.devEnd).toString('latin1').replace(/\0.*$/s, ''),
  };
}

/**
 * Negative if `a` was written before `b`, 0 if they are the same record. `boots` are the epochs of the boots that were seen, first to
 * last; one that nobody saw comes before all.
 */
export function compareRecords(a: RecordNumber, b: RecordNumber, boots: readonly number[]): number {
  return boots.indexOf(a.epoch) - boots.indexOf(b.epoch) || a.n - b.n;
}

function isZero(block: Buffer): boolean {
  return block.every((byte) => byte === 0);
}
