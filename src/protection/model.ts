import type { Policy } from '../domain/declaration.ts';
import type { Engine } from '../graph/engine.ts';

/** The words in which virt-cdp speaks of a domain's protection; `virt-cdp status --json` has the same shape. */

/** From best to worst; a domain's state is its worst disk's. `stopped` is a domain that does not run. */
export const diskStates = [
  'stopped',
  'protected',
  'rebuilding',
  'failed-over',
  'syncing',
  'exposed',
  'held',
  'waiting',
  'broken',
] as const;

export type DiskState = (typeof diskStates)[number];

/** Which of a disk's two copies. */
export type Side = 'primary' | 'mirror';

export interface CopyStatus {
  /** As the user names it: a path or a URI. */
  source: string;
  /** Holds every acknowledged write. */
  current: boolean;
  /** What the last probe or I/O said; null when nobody has looked yet. */
  reachable: boolean | null;
  /** ISO time as of which a stale copy is whole; null if it is current, or a mixture of times. */
  consistentAsOf: string | null;
  /** Present and true while a stale copy holds blocks of different times. */
  mixture?: true;
}

export interface JobStatus {
  kind: 'full-sync' | 'delta-sync' | 'rebuild' | 'verify';
  /** Bytes. */
  done: number;
  /** Bytes. */
  total: number;
}

/** What a verify of a disk's two copies found. */
export interface DiskVerdict {
  dev: string;
  /** ISO time of the instant that was compared. */
  asOf: string;
  /** Bytes. */
  comparedBytes: number;
  /** Where the copies differ, in blocks of 64 KiB; bytes. */
  differences: { offset: number; length: number }[];
  differingBytes: number;
  /** What differed each time, and was written each time in between: it may be a guest's way to use its memory. */
  unsettledBytes: number;
  /** False if so much differs that it was not compared to the end. */
  complete: boolean;
  /** What differs is being copied from the primary onto the mirror. */
  repairing: boolean;
}

export interface DiskStatus {
  dev: string;
  state: DiskState;
  /** ISO time at which the state began. */
  since: string;
  /** Why a disk is `waiting`, `exposed` or `broken`, as a sentence; null when there is nothing to say. */
  reason: string | null;
  primary: CopyStatus;
  mirror: CopyStatus;
  runningOn: 'both' | Side | 'none';
  exposedSince: string | null;
  exposedBytes: number | null;
  job: JobStatus | null;
}

/**
 * What an acknowledged write means for a domain: `strict-ack`: while it is protected, both copies have it; `relaxed`: they have as long
 * as the mirror does not fail, and a guest's flush reaches the primary alone; `none`: a declared disk runs in a way in which it can't be
 * protected, so that one copy alone ever has it.
 */
export const guarantees = ['strict-ack', 'relaxed', 'none'] as const;

export type Guarantee = (typeof guarantees)[number];

export interface DomainStatus {
  domain: string;
  uuid: string;
  running: boolean;
  state: DiskState;
  policy: Policy;
  engine: Engine;
  guarantee: Guarantee;
  disks: DiskStatus[];
  /** Present where the domain is not served at all, and its disks are not known: why, and what to do. */
  problem?: string;
}

/** One line of `virt-cdp events`. */
export interface ProtectionEvent {
  /** Grows by one with each event of this host; `events --since N` goes on from one. */
  seq: number;
  time: string;
  domain: string;
  disk: string | null;
  event: EventName;
  from: DiskState | null;
  to: DiskState | null;
  detail: Record<string, unknown>;
}

export const eventNames = [
  'declared',
  'requested',
  'undeclared',
  'armed',
  'protected',
  'mirror-lost',
  'primary-lost',
  'failed-over',
  'exposed',
  'waiting',
  'broken',
  'held',
  'released',
  'resync-started',
  'resync-finished',
  'rebuild-started',
  'rebuild-finished',
  'started',
  'stopped',
  'start-refused',
  'protect-refused',
  'record-not-durable',
  'record-unreadable',
  'hang',
  'rebuild-failed',
  'step-failed',
  'renamed',
  'policy-changed',
  'definition-differs',
  'at-risk',
  'definition-restored',
  'copy-changed',
  'mirror-contested',
  'gone',
  'migrated-away',
  'arrived',
  'migration-cancelled',
  'saved',
  'restored',
  'restore-failed',
  'verified',
  'verify-failed',
] as const;

export type EventName = (typeof eventNames)[number];
