/**
 * The names of our nodes, jobs and bitmaps inside a QEMU. They are the only marks we leave there, and everything is
 * found again by them after a crash of the agent.
 */
export interface DiskNames {
  /** The two-copy writer: a quorum node, or the filter of a mirror job. */
  pair: string;
  pairJob: string;
  /** The mirror's topmost node, as large as the disk. */
  mirror: string;
  mirrorStorage: string;
  /** A node on which every I/O fails with EIO, and the null node under it. */
  park: string;
  parkNull: string;
  /** An idle null node of the disk's size, from which a flush job copies nothing. */
  nothing: string;
  flushJob: string;
  /** The job that reads the beginning of a copy, `slice`, into `sink`. */
  readJob: string;
  slice: string;
  sink: string;
  /** The job that brings a stale copy up to date, and the filter node that it inserts. */
  syncJob: string;
}

export function diskNames(dev: string): DiskNames {
  const prefix = `cdp-${dev}`;
  return {
    pair: prefix,
    pairJob: `${prefix}-pair`,
    mirror: `${prefix}-mirror`,
    mirrorStorage: `${prefix}-mirror-storage`,
    park: `${prefix}-park`,
    parkNull: `${prefix}-park-null`,
    nothing: `${prefix}-nothing`,
    flushJob: `${prefix}-flush`,
    readJob: `${prefix}-read`,
    slice: `${prefix}-slice`,
    sink: `${prefix}-sink`,
    syncJob: `${prefix}-sync`,
  };
}

/** An idle node is named after the socket of QEMU's connection to the mirror. */
export function connectionPrefix(dev: string): string {
  return `cdp-${dev}-socket-`;
}

/** What an instant of both copies consists of, while it is compared. */
export interface InstantNames {
  primary: InstantSide;
  mirror: InstantSide;
  /** Begins the names of its bitmaps: what was written since an instant. */
  bitmapPrefix: string;
  /** An idle null node on which a bitmap is made that marks what differs. */
  marks: string;
}

export interface InstantSide {
  /** The job that keeps what is overwritten, its filter node, and the export of the copy as it was. */
  job: string;
  overlay: string;
  overlayFile: string;
}

export function instantNames(dev: string): InstantNames {
  // QEMU's names of nodes have at most 31 characters.
  const side = (copy: string): InstantSide => ({
    job: `cdp-${dev}-verify-${copy}`,
    overlay: `cdp-${dev}-overlay-${copy}`,
    overlayFile: `cdp-${dev}-scratch-${copy}`,
  });
  return {
    primary: side('primary'),
    mirror: side('mirror'),
    bitmapPrefix: `cdp-verify-${dev}-`,
    marks: `cdp-${dev}-verify-marks`,
  };
}

/** An idle node that exists while a pause of the domain is ours, so that a restarted agent knows whom to resume. */
export const surgeryMark = 'cdp-surgery';

/** Bitmaps on a current copy: the blocks that the other, stale copy lacks. The suffix is unique to one outage. */
export const trackPrefix = 'cdp-track-';

export function trackName(startedAtMs: number, sizeBytes: number): string {
  return `${trackPrefix}${startedAtMs}-${sizeBytes}`;
}

/** How large the disk was when the bitmap began; null if its name does not tell. */
export function trackedSize(name: string): number | null {
  const size = name.slice(trackPrefix.length).split('-')[1];
  return size === undefined ? null : Number(size);
}

/** Bitmaps on the two-copy writer: what was written since, so that a copy that loses unflushed writes can be mended. */
export const epochPrefix = 'cdp-epoch-';

export function epochName(startedAtMs: number): string {
  return `${epochPrefix}${startedAtMs}`;
}

/** When an epoch began, in ms since 1970. */
export function epochStart(name: string): number {
  return Number(name.slice(epochPrefix.length));
}

/** Bytes that one bit of our bitmaps stands for; the same everywhere, because only equal bitmaps can be merged. */
export const bitmapGranularityBytes = 65536;
