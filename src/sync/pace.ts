/**
 * How fast a sync may go beside a guest that uses the same storage: slower when the guest's writes take longer than they did before it
 * began, and faster again, slowly, when they don't. Pure: what was seen goes in, the next speed comes out.
 */

/** What QEMU has counted of a disk's device since it started (query-blockstats), and how far the sync is. */
export interface WriteCount {
  atMs: number;
  writes: number;
  /** What all of them took together. */
  waitedNs: number;
  /** Bytes that the sync has done; null without one. */
  syncedBytes: number | null;
  /** Writes wait for the sync's target too, however slow the sync is. */
  waitForTarget: boolean;
}

export interface Pace {
  /** Of the sync that runs, or of the next. */
  bytesPerS: number;
  /** What a write took on average when no sync ran, or at a sync's first speed where that would say nothing; null: not known. */
  calmNs: number | null;
  /** From where the next judgement counts. */
  mark: WriteCount | null;
  /** The guest was slowed at a higher speed: it is only approached with care. */
  careful: boolean;
}

const mebibyte = 1024 * 1024;

/** Beside a guest that writes, or may, a sync begins so fast, and is twice as fast each second until the guest is slowed. */
const firstBytesPerS = 64 * mebibyte;

/** Beside one that is known to write next to nothing: faster than most storage is. */
const idleBytesPerS = 4096 * mebibyte;

export const unpaced: Pace = { bytesPerS: firstBytesPerS, calmNs: null, mark: null, careful: false };

/** No guest makes a sync slower: it must end. A TiB takes 36 hours at this. */
const leastBytesPerS = 8 * mebibyte;

/** Fewer writes say nothing of how long they take. */
const fewWrites = 10;

const judgedMs = 900;

/** A guest that has written next to nothing for so long, and has not waited for that either, is not slowed by anything. */
const idleMs = 3_000;
const idleShare = 0.1;

/** Writes that take more than this times what they took are to become faster again before it is twice as long; below the other, all is well. */
const slowed = 1.6;
const unharmed = 1.3;

/** So much of a difference is followed by each judgement. */
const followed = 0.1;

/** `maxBytesPerS` is the administrator's limit; 0 is unlimited. */
export function nextPace(pace: Pace, seen: WriteCount, maxBytesPerS: number): Pace {
  const limited = (bytesPerS: number): number => atMost(bytesPerS, maxBytesPerS);
  const { mark } = pace;
  const kept = withinLimit(pace, maxBytesPerS);
  const next = { ...kept, mark: seen };
  if (mark === null || !isOfOneSync(mark, seen)) return { ...next, calmNs: calmBefore(pace, seen) };
  const ms = seen.atMs - mark.atMs;
  const writes = seen.writes - mark.writes;
  const waitedNs = seen.waitedNs - mark.waitedNs;
  const isFew = writes < fewWrites;
  if (ms < judgedMs || (isFew && ms < idleMs)) return kept;
  const writeNs = isFew && waitedNs < idleShare * ms * 1e6 ? null : waitedNs / writes;
  if (seen.syncedBytes === null || mark.syncedBytes === null) {
    const bytesPerS = limited(writeNs === null ? idleBytesPerS : firstBytesPerS);
    return { ...next, calmNs: writeNs ?? pace.calmNs, bytesPerS, careful: false };
  }
  if (pace.calmNs === null && writeNs !== null && kept.bytesPerS > firstBytesPerS)
    return { ...next, bytesPerS: limited(firstBytesPerS) };
  const calmNs = calmBeside(kept, seen, writeNs);
  const ratio = writeNs === null || calmNs === null ? 0 : writeNs / calmNs;
  const actual = ((seen.syncedBytes - mark.syncedBytes) / ms) * 1000;
  if (ratio > slowed) {
    const lower = Math.max(leastBytesPerS, Math.round(Math.min(kept.bytesPerS, actual) / ratio));
    return { ...next, calmNs, bytesPerS: Math.min(kept.bytesPerS, lower), careful: true };
  }
  // What is not reached limits nothing: there is no use in raising it.
  if (ratio > unharmed || actual < kept.bytesPerS / 2) return { ...next, calmNs };
  return { ...next, calmNs, bytesPerS: limited(Math.round(kept.bytesPerS * (pace.careful ? 1.1 : 2))) };
}

/** At the first look it is the average since the domain began. */
function calmBefore({ mark, calmNs }: Pace, { waitForTarget, writes, waitedNs }: WriteCount): number | null {
  if (waitForTarget) return null;
  if (mark !== null) return calmNs;
  return writes < fewWrites ? null : waitedNs / writes;
}

/** Beside a sync that writes wait for they take longer the more of the disk is copied, at any speed: it is followed while that is low. */
function calmBeside({ calmNs, bytesPerS }: Pace, { waitForTarget }: WriteCount, writeNs: number | null): number | null {
  if (calmNs === null || writeNs === null) return calmNs ?? writeNs;
  return waitForTarget && bytesPerS <= firstBytesPerS ? calmNs + followed * (writeNs - calmNs) : calmNs;
}

/** Lowers the speed to what the administrator allows now. */
export function withinLimit(pace: Pace, maxBytesPerS: number): Pace {
  return { ...pace, bytesPerS: atMost(pace.bytesPerS, maxBytesPerS) };
}

function atMost(bytesPerS: number, maxBytesPerS: number): number {
  return maxBytesPerS === 0 ? bytesPerS : Math.min(bytesPerS, maxBytesPerS);
}

/** No sync ran at both, or one and the same. */
function isOfOneSync(mark: WriteCount, seen: WriteCount): boolean {
  if (mark.syncedBytes === null || seen.syncedBytes === null) return mark.syncedBytes === seen.syncedBytes;
  return seen.syncedBytes >= mark.syncedBytes;
}
