import type { Image } from '../domain/image.ts';
import type { Engine } from '../graph/engine.ts';
import type { DiskGraph } from '../graph/view.ts';
import type { Side } from './model.ts';
import type { DiskRecord, DomainRecord } from './record.ts';
import type { VerifyView } from './verification.ts';

/** All that the planner may know: one look at one running domain. */
export interface Observation {
  /** ISO time of the look. */
  now: string;
  run: RunView;
  /** A save, a dump or a migration is under way, or one of ours is about to be, at whose end QEMU (7.2, tried) aborts if a job still writes. */
  migrating: boolean;
  /** It is a migration to another host, which will open the images that libvirt's live XML names. */
  leaving: boolean;
  /** Which QEMU this is. */
  instance: string;
  /** The mark of a surgery of ours stands in QEMU. */
  surgeryMarked: boolean;
  record: DomainRecord;
  disks: DiskObservation[];
}

/** Whether vCPUs run, and if not, whose pause it is. */
export type RunView =
  | 'running'
  /** The stop policy: a disk's I/O failed. */
  | 'io-error'
  /** A surgery of ours. */
  | 'surgery'
  /** `virsh suspend`, or a start with `--paused`: the domain must stay paused. */
  | 'suspended'
  /** Migration, save, shutdown, crash: not a moment for surgery. */
  | 'hands-off';

export interface DiskObservation {
  record: DiskRecord;
  /** null when the device is not in the domain. */
  graph: DiskGraph | null;
  /** Nodes that an unplugged disk left behind in QEMU, topmost first; a disk that was plugged in since has others. */
  orphans: string[];
  /** An I/O thread of QEMU's serves it. */
  ioThread: boolean;
  /** What writes to both copies, or will. */
  engine: Engine;
  /** Of a disk whose guest is told of I/O errors instead of being paused: what that costs and how it is changed, as sentences; else null. */
  withoutStopPolicy: string | null;
  /** libvirt's live `<source>`; null when the disk is not in the live XML or of a kind that is not supported. */
  liveImage: Image | null;
  /** Why the running disk can't be armed, as a sentence; null if it can. */
  obstacle: string | null;
  /** The persistent XML names a copy that is not current. */
  xmlBehind: boolean;
  /** The guest is stopped because I/O on this disk failed. */
  ioFailed: boolean;
  /** It failed for want of space on the storage. */
  noSpace: boolean;
  health: Record<Side, Health>;
  primaryGone: GoneFile | null;
  hang: Hang | null;
  /** Copies in use whose storage does not answer, and of which QEMU has not said that they failed: whatever waits for them might wait for ever. */
  silent: Side[];
  /** Copies that somebody wrote to, or replaced, since QEMU closed them: what differs is not known. */
  touched: Side[];
  /** How the domain last stopped with both copies current, if the guest may not have written since. */
  atStop: Identity | null;
  /** Why libvirt's copy job of a rebuild ended without success; null if it did not. */
  copyFailed: string | null;
  /** The back-off since the last failed attempt on this disk has run out. */
  mayRetry: boolean;
  /** Delta passes since the last outage. */
  deltaPasses: number;
  /** How fast a sync may go beside the guest, and at most; 0 is unlimited. */
  pace: { bytesPerS: number; mostBytesPerS: number };
  verify: VerifyView;
  /** The newest epoch is old enough for a new one, and which older ones every copy has flushed since. */
  epochs: { rotate: boolean; flushed: string[] };
}

/**
 * Both copies were current when the guest last stood still: identical if `clean`. `primary` is the primary's fingerprint then; null where
 * nobody can have come in between, because the guest has been handed over.
 */
export interface Identity {
  clean: boolean;
  primary: string | null;
}

/**
 * A file of the primary that QEMU has open and nobody can open again. QEMU neither: it opens a file by its path again whenever its
 * node gets or loses its last writer (block/file-posix.c: raw_reconfigure_getfd, with auto-read-only, as libvirt has it).
 */
export interface GoneFile {
  path: string;
  /** Nothing is there; else another file is. */
  deleted: boolean;
  /** As a sentence. */
  why: string;
}

/** The guest's requests to a disk don't end. */
export interface Hang {
  /** The copy that does not answer; null: what they wait for is not known. */
  side: Side | 'both' | null;
  /** ISO time. */
  since: string;
}

/** What is known of a copy since it was last put into use; `failed` says how. */
export type Health = { is: 'unknown' } | { is: 'answering' } | { is: 'failed'; why: string; noSpace: boolean };
