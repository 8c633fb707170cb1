import type { Image } from '../domain/image.ts';
import type { Engine } from '../graph/engine.ts';
import type { BitmapName } from '../qmp/commands.ts';
import type { Extent } from '../sync/compare.ts';
import type { EventName, Side } from './model.ts';
import type { DomainRecord } from './record.ts';

type NoArguments = object;

/** Every step of a plan, with its arguments. Steps are data: the planner makes them, exactly one executor each carries them out. */
export interface StepArguments {
  /** The guest would go on elsewhere on a stale copy of this disk. */
  cancelMigration: { dev: string };
  /** Leaves the mark that the pause which follows is ours. */
  markSurgery: NoArguments;
  unmarkSurgery: NoArguments;
  pause: NoArguments;
  resume: NoArguments;
  buildPark: { dev: string; sizeBytes: number };
  removePark: { dev: string };
  /** Only from the root for which the plan was made. */
  park: { dev: string; qdev: string; root: string };
  unpark: { dev: string; qdev: string; node: string };
  /** Is not opened if it was to be as it was `sealed`, and is not; null: its content does not matter. */
  openMirror: { dev: string; image: Image; sizeBytes: number; sealed: string | null };
  closeMirror: { dev: string };
  /** Starts the relay of the mirror again if it has ended. */
  reviveRelay: { dev: string; image: Image };
  /** Opens the primary's image under libvirt's names; `sealed` as above. */
  openPrimary: { dev: string; image: Image; names: string[]; sealed: string | null };
  /** Records what a stale copy is like now that QEMU has closed it. */
  seal: { dev: string; side: Side; image: Image };
  /** Puts an empty file where a deleted one was: QEMU opens it in that one's place when its node loses its writer, or refuses to move. */
  standIn: { dev: string; path: string };
  removeStandIn: { dev: string; path: string };
  closePrimary: { dev: string; nodes: string[] };
  /** Fails unless the disk was not written to since QEMU started, and the primary is as when it last stopped. */
  requireUntouched: { dev: string; qdev: string; node: string; image: Image; fingerprint: string | null };
  /** Closes what an unplugged disk left behind. */
  closeOrphans: { dev: string; nodes: string[] };
  compose: { dev: string; primaryTop: string; engine: Engine };
  /** Makes the pair of a disk that keeps its node: a mirror job that copies everything first. */
  composeCopying: { dev: string; primaryTop: string };
  dropPair: { dev: string };
  /** Ends the mirror job of a pair on the mirror. */
  promote: { dev: string };
  /** Fails unless a mirror job has written all that was acknowledged to the mirror, too. */
  requireInSync: { dev: string };
  /** Fails if the mirror has another connection than at first: its server may have lost what it had not flushed. */
  requireConnected: { dev: string };
  /** Begins an epoch on the two-copy writer. */
  addEpoch: { dev: string };
  dropEpoch: { dev: string; bitmap: string };
  /** Begins to record what is written to a current copy, with what was recorded before; `persistent`: also in its image, for the next start. */
  track: { dev: string; node: string; bitmap: string; merged: BitmapName[]; persistent?: boolean };
  untrack: { node: string; bitmap: string };
  startFullSync: { dev: string; from: string; to: string };
  /** Copies the source as it is when the job starts. */
  startSnapshotSync: { dev: string; from: string; to: string };
  /** Forgets a sync that has ended and is still among the jobs. */
  dismissSync: { dev: string };
  /** Of a job that brings a copy up to date, ours or libvirt's; 0 is unlimited. */
  setSpeed: { dev: string; job: string; bytesPerS: number };
  endFullSync: { dev: string };
  startDelta: { dev: string; from: string; to: string; bitmap: string };
  /** The last delta, while the disk is parked. */
  finishDelta: { dev: string; from: string; to: string; bitmap: string };
  cancelSync: { dev: string };
  flush: { dev: string; node: string };
  /**
   * Asks a copy for an answer: its storage by another process, and then, if `node` is given, QEMU itself: a server that was away
   * unnoticed may have lost what it had acknowledged. What comes of it is seen in the next observation.
   */
  probe: { dev: string; side: Side; image: Image; node: string | null };
  /** Takes a copy for failed, so that it is opened anew. */
  suspect: { dev: string; side: Side; why: string };
  /** As `probe`, but fails without an answer. */
  requireAnswer: { dev: string; side: Side; image: Image; node: string | null };
  /** Makes both copies readable as they are at one instant, for the verify that wants it. */
  takeInstant: { dev: string; sizeBytes: number; top: string; data: string; mirror: string };
  /** `why` the verify can't go on; null if it has ended by itself, or nobody knows of one. */
  endInstant: { dev: string; why: string | null };
  /** Marks extents in the newest epoch, so that the next delta copies them onto the mirror. */
  markDiffering: { dev: string; sizeBytes: number; epochs: string[]; extents: Extent[] };
  /** libvirt's names over the mirror, for libvirt's own copy job. */
  buildLayers: { dev: string; names: string[] };
  /** libvirt's copy job; with `whileStopped` a guest that somebody resumed is stopped again before. */
  startCopy: { dev: string; to: Image; whileStopped: boolean };
  abortCopy: { dev: string };
  pivot: { dev: string };
  record: { record: DomainRecord };
  /** Makes the persistent XML name a copy. */
  defineSource: { dev: string; image: Image };
  /** Puts a disk's former error policies back, and takes the declaration and the record away. */
  forget: { dev: string };
  note: { event: EventName; disk: string; detail: Record<string, unknown> };
}

export type StepName = keyof StepArguments;

export type Step = { [Name in StepName]: { step: Name } & StepArguments[Name] }[StepName];
