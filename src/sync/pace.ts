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
}

export interface Pace {
  /** Of the sync; 0 is unlimited. */
  bytesPerS: number;
  /** What a write took on average when no sync ran; null: not known. */
  calmNs: number | null;
  /** From where the next judgement counts. */
  mark: WriteCount | null;
  /** The guest was slowed at a higher speed: it is only approached with care. */
  careful: boolean;
}

export const unpaced: Pace = { bytesPerS: 0, calmNs: null, mark: null, careful: false };

const mebibyte = 1024 * 1024;

/** A sync begins so fast: faster than most storage is, because a guest that is idle is known to be so only after seconds. */
const firstBytesPerS = 4096 * mebibyte;

/** No guest makes a sync slower: it must end. A TiB takes 36 hours at this. */
const leastBytesPerS = 8 * mebibyte;

/** Fewer writes say nothing of how long they take. */
const fewWrites = 10;

const judgedMs = 900;

/** A guest that has written next to nothing for so long is not slowed by anything. */
const idleMs = 3_000;

/** Writes that take more than this times what they took are to become faster again before it is twice as long; below the other, all is well. */
const slowed = 1.6;
const unharmed = 1.3;

/** `maxBytesPerS` is the administrator's limit; 0 is unlimited. */
export function nextPace(pace: Pace, seen: WriteCount, maxBytesPerS: number): Pace {
  const limited = (bytesPerS: number): number =>
    maxBytesPerS === 0 ? bytesPerS : bytesPerS === 0 ? maxBytesPerS : Math.min(bytesPerS, maxBytesPerS);
  const { mark } = pace;
  if (seen.syncedBytes === null)
    return { ...withoutSync(pace, seen), bytesPerS: limited(firstBytesPerS), careful: false };
  const kept = { ...pace, bytesPerS: limited(pace.bytesPerS || firstBytesPerS) };
  if (mark?.syncedBytes == null || seen.syncedBytes < mark.syncedBytes) return { ...kept, mark: seen };
  const ms = seen.atMs - mark.atMs;
  const writes = seen.writes - mark.writes;
  if (ms < judgedMs || (writes < fewWrites && ms < idleMs)) return kept;
  const ratio = pace.calmNs === null || writes < fewWrites ? 0 : (seen.waitedNs - mark.waitedNs) / writes / pace.calmNs;
  const actual = ((seen.syncedBytes - mark.syncedBytes) / ms) * 1000;
  const next = { ...kept, mark: seen };
  if (ratio > slowed) {
    const lower = Math.max(leastBytesPerS, Math.round(Math.min(kept.bytesPerS, actual) / ratio));
    return { ...next, bytesPerS: Math.min(kept.bytesPerS, lower), careful: true };
  }
  // What is not reached limits nothing: there is no use in raising it.
  if (ratio > unharmed || actual < kept.bytesPerS / 2) return next;
  return { ...next, bytesPerS: limited(Math.round(kept.bytesPerS * (pace.careful ? 1.1 : 2))) };
}

/** The first time it is the average since the domain began; just after a sync, what it was before it. */
function withoutSync(pace: Pace, seen: WriteCount): Pace {
  if (pace.mark !== null && pace.mark.syncedBytes !== null) return { ...pace, mark: seen };
  const mark = pace.mark ?? { ...seen, writes: 0, waitedNs: 0 };
  const writes = seen.writes - mark.writes;
  if (writes < fewWrites) return { ...pace, mark };
  return { ...pace, calmNs: (seen.waitedNs - mark.waitedNs) / writes, mark: seen };
}
