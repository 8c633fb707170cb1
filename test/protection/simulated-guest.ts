/** What one disk's guest was told, and waits for. */
export interface Guest {
  acknowledged: Map<number, number>;
  /** Of these, what no power cut may take. */
  flushed: Map<number, number>;
  /** What nobody flushed when QEMU ended: a new QEMU does not ask the storage for it either (QEMU, block/io.c: bdrv_co_flush). */
  unasked: Map<number, number>;
  /** Failed, and not yet told to the guest: they are tried again after a resume. */
  pending: { block: number; version: number }[];
  flushes: number;
  /** Blocks whose failed write was given up: one copy may have it and the other not. */
  dropped: Set<number>;
  /** It wrote or tried to since QEMU started. */
  wrote: boolean;
}

export function newGuest(): Guest {
  return {
    acknowledged: new Map(),
    flushed: new Map(),
    unasked: new Map(),
    pending: [],
    flushes: 0,
    dropped: new Set(),
    wrote: false,
  };
}
