import type { Image } from '../domain/image.ts';
import { errorText } from '../errors.ts';
import { addBitmap, removeBitmap } from '../graph/bitmaps.ts';
import { compose, composeCopying, dissolve, isInSync, promote } from '../graph/engine.ts';
import { dropInstant, markInEpoch, takeInstant } from '../graph/instant.ts';
import { diskNames, epochName } from '../graph/names.ts';
import { endRead, readNode } from '../graph/read.ts';
import {
  buildLayers,
  buildPark,
  closeNodes,
  markSurgery,
  pauseCleanly,
  resume,
  setRoot,
  staysPaused,
  unmarkSurgery,
} from '../graph/surgery.ts';
import { QmpError } from '../qmp/errors.ts';
import { imageName } from '../storage/image.ts';
import { fingerprint } from '../storage/fingerprint.ts';
import { putStandIn, removeStandIn } from '../health/stand-in.ts';
import type { ImageOpener } from '../storage/opener.ts';
import type { Scratch } from '../storage/scratch.ts';
import { requireMirrorSize } from '../storage/mirror-size.ts';
import { imageSize, probeImage, type LookOptions } from '../storage/tools.ts';
import { requireNoWrites } from '../sync/untouched.ts';
import { flushNode } from '../sync/flush.ts';
import {
  cancelSync,
  dismissSync,
  endFullSync,
  finishDelta,
  setSpeed,
  startDelta,
  startFullSync,
  startSnapshotSync,
} from '../sync/jobs.ts';
import { forgetConnection, hasReconnected, reconnectedText, withConnectionNoted } from './connection.ts';
import type { DiskMemory } from './disk-memory.ts';
import type { LiveDomain } from './live-domain.ts';
import { openChain } from './open-chain.ts';
import { openImage } from './open-image.ts';
import type { EventName, Side } from './model.ts';
import { withSeal, withSealsOf, type DomainRecord } from './record.ts';
import type { Step, StepArguments, StepName } from './steps.ts';
import { verifyStopped } from './verification.ts';

/** What executors act on. */
export interface Workbench {
  live: LiveDomain;
  memoryOf: (dev: string) => DiskMemory;
  /** Durable when it returns, or said to be not. */
  saveRecord: (record: DomainRecord) => Promise<void>;
  /** As it is now. */
  record: () => DomainRecord;
  forgetDisk: (dev: string) => Promise<void>;
  /** Throws if a pair failed since the look for which the plan was made: a guest never goes on over one. */
  requireNoFailedPair: () => void;
  note: (event: EventName, disk: string, detail: Record<string, unknown>) => void;
  probeDeadlineMs: number;
  opener: ImageOpener;
  scratch: Scratch;
}

/** A step that could not be carried out; the next look at the domain decides how to go on. */
export class StepFailed extends Error {
  readonly step: Step;

  constructor(step: Step, cause: unknown) {
    super(`the step ${step.step} failed`, { cause });
    this.name = 'StepFailed';
    this.step = step;
  }
}

/** A local file system answers at once. */
const toolDeadline = { deadlineMs: 2_000 };

/** A migration that is cancelled ends at once, unless its network hangs. */
const migrationEndDeadlineMs = 10_000;

/** The guest stands still meanwhile. */
const stoppedCopyDeadlineMs = 3_000;

type Executors = { [Name in StepName]: (bench: Workbench, args: StepArguments[Name]) => Promise<void> };

const executors: Executors = {
  cancelMigration: async ({ live, note }, { dev }) => {
    await live.monitor.eventAfter(
      'the end of the migration',
      ({ event, data }) =>
        event === 'MIGRATION' && ['cancelled', 'failed', 'completed'].includes(String(data['status'])),
      migrationEndDeadlineMs,
      () => live.cancelMigration(),
    );
    note('migration-cancelled', dev, { why: 'it is failed over, or about to be, and would go on with its primary' });
  },
  markSurgery: ({ live }) => markSurgery(live.monitor),
  unmarkSurgery: ({ live }) => unmarkSurgery(live.monitor),
  pause: ({ live }) => pauseCleanly(live.monitor),
  resume: async (bench) => {
    bench.requireNoFailedPair();
    await resume(bench.live.monitor);
  },
  buildPark: ({ live }, { dev, sizeBytes }) => buildPark(live.monitor, dev, sizeBytes),
  removePark: async ({ live }, { dev }) => {
    const { park, nothing, flushJob } = diskNames(dev);
    await cancelSync(live.monitor, flushJob);
    await closeNodes(live.monitor, [park, nothing]);
  },
  park: ({ live }, { dev, qdev, root }) => setRoot(live.monitor, qdev, root, diskNames(dev).park),
  unpark: (bench, { dev, qdev, node }) =>
    moveOn(bench, dev, ({ monitor }) => setRoot(monitor, qdev, diskNames(dev).park, node)),
  openMirror: async (bench, { dev, image, sizeBytes, sealed }) => {
    const { mirror, mirrorStorage } = diskNames(dev);
    requireRested(bench, dev, 'mirror', image);
    await requireToAnswer(bench, image);
    if (await isTouched(bench, { dev, side: 'mirror', image, sealed })) return;
    requireMirrorSize(image, await imageSize(image, lookOptions(bench)), sizeBytes);
    const shown = image.format === 'raw' ? { sizeBytes } : {};
    await withConnectionNoted(bench.live, dev, image, async () => {
      const { ref, relays } = bench.live;
      const reached = await relays.reach(ref, dev, image, bench.probeDeadlineMs);
      const names = { storageNode: mirrorStorage, formatNode: mirror, unmap: reached === image };
      await openImage(bench, reached, { ...names, ...shown });
    });
    bench.memoryOf(dev).opened('mirror');
  },
  closeMirror: async ({ live, memoryOf }, { dev }) => {
    const { mirror, mirrorStorage, flushJob } = diskNames(dev);
    await cancelSync(live.monitor, flushJob);
    await endRead(live.monitor, diskNames(dev));
    await closeNodes(live.monitor, [mirror, mirrorStorage]);
    await forgetConnection(live, dev);
    memoryOf(dev).closed('mirror');
    await live.relays.end(live.ref, dev);
  },
  reviveRelay: ({ live, probeDeadlineMs }, { dev, image }) => live.relays.revive(live.ref, dev, image, probeDeadlineMs),
  openPrimary: async (bench, { dev, image, names, sealed }) => {
    requireRested(bench, dev, 'primary', image);
    await requireToAnswer(bench, image);
    if (await isTouched(bench, { dev, side: 'primary', image, sealed })) return;
    const backing = (await bench.live.disks()).find((disk) => disk.dev === dev)?.backing ?? [];
    await openChain(bench, image, backing, names);
    bench.memoryOf(dev).opened('primary');
  },
  seal: async ({ record, saveRecord }, { dev, side, image }) => {
    const found = await fingerprint(image, toolDeadline).catch(() => null);
    await saveRecord(withSeal(record(), dev, side, found?.text));
  },
  standIn: (_, { path }) => putStandIn(path, toolDeadline),
  removeStandIn: (_, { path }) => removeStandIn(path, toolDeadline),
  closePrimary: async ({ live, memoryOf }, { dev, nodes }) => {
    await cancelSync(live.monitor, diskNames(dev).flushJob);
    await endRead(live.monitor, diskNames(dev));
    await closeNodes(live.monitor, nodes);
    memoryOf(dev).closed('primary');
  },
  closeOrphans: async ({ live, memoryOf, scratch }, { dev, nodes }) => {
    await dropInstant(live.monitor, dev, scratch);
    await cancelSync(live.monitor, diskNames(dev).syncJob);
    await cancelSync(live.monitor, diskNames(dev).readJob);
    await cancelSync(live.monitor, diskNames(dev).pairJob);
    await closeNodes(live.monitor, nodes);
    memoryOf(dev).unplugged();
    await live.relays.end(live.ref, dev);
  },
  requireUntouched: async (bench, { dev, qdev, node, image, fingerprint: expected }) => {
    bench.memoryOf(dev).atStop = null;
    await requireNoWrites(bench.live.monitor, qdev, node);
    if (expected === null) return;
    const found = await fingerprint(image, { deadlineMs: bench.probeDeadlineMs });
    if (found?.text !== expected) throw new Error(`'${imageName(image)}' was changed while the domain was stopped`);
  },
  compose: ({ live }, { dev, primaryTop, engine }) => compose(live.monitor, dev, primaryTop, engine),
  composeCopying: (bench, { dev, primaryTop }) =>
    moveOn(bench, dev, ({ monitor }) => composeCopying(monitor, dev, primaryTop, bench.memoryOf(dev).pace.bytesPerS)),
  dropPair: ({ live }, { dev }) => dissolve(live.monitor, dev),
  promote: (bench, { dev }) => moveOn(bench, dev, ({ monitor }) => promote(monitor, dev)),
  requireInSync: async ({ live }, { dev }) => {
    const { pairJob } = diskNames(dev);
    const job = (await live.monitor.execute('query-block-jobs', {})).find(({ device }) => device === pairJob);
    if (!isInSync(job)) throw new Error('the mirror failed meanwhile, and lacks writes');
  },
  requireConnected: async ({ live, memoryOf }, { dev }) => {
    if (!(await hasReconnected(live, dev))) return;
    memoryOf(dev).learn('mirror', { is: 'failed', why: reconnectedText, noSpace: false });
    throw new Error(reconnectedText);
  },
  addEpoch: async ({ live, memoryOf }, { dev }) => {
    await addBitmap(live.monitor, diskNames(dev).pair, epochName(Date.now()), []);
    memoryOf(dev).reachable = { primary: true, mirror: true };
  },
  dropEpoch: ({ live }, { dev, bitmap }) => removeBitmap(live.monitor, diskNames(dev).pair, bitmap),
  track: ({ live }, { node, bitmap, merged, persistent = false }) =>
    addBitmap(live.monitor, node, bitmap, merged, { persistent }),
  untrack: ({ live }, { node, bitmap }) => removeBitmap(live.monitor, node, bitmap),
  startFullSync: ({ live, memoryOf }, { dev, from, to }) =>
    startFullSync(live.monitor, { job: diskNames(dev).syncJob, from, to, maxBytesPerS: memoryOf(dev).pace.bytesPerS }),
  startSnapshotSync: ({ live, memoryOf }, { dev, from, to }) =>
    startSnapshotSync(live.monitor, {
      job: diskNames(dev).syncJob,
      from,
      to,
      maxBytesPerS: memoryOf(dev).pace.bytesPerS,
    }),
  dismissSync: ({ live }, { dev }) => dismissSync(live.monitor, diskNames(dev).syncJob),
  setSpeed: ({ live }, { job, bytesPerS }) => setSpeed(live.monitor, job, bytesPerS),
  endFullSync: ({ live }, { dev }) => endFullSync(live.monitor, diskNames(dev).syncJob),
  startDelta: ({ live, memoryOf }, { dev, from, to, bitmap }) =>
    startDelta(
      live.monitor,
      { job: diskNames(dev).syncJob, from, to, maxBytesPerS: memoryOf(dev).pace.bytesPerS },
      bitmap,
    ),
  finishDelta: ({ live }, { dev, from, to, bitmap }) =>
    finishDelta(live.monitor, { job: diskNames(dev).syncJob, from, to, maxBytesPerS: 0 }, bitmap),
  cancelSync: ({ live }, { dev }) => cancelSync(live.monitor, diskNames(dev).syncJob),
  flush: async ({ live, memoryOf }, { dev, node }) => {
    const { flushJob, nothing, mirror } = diskNames(dev);
    try {
      await flushNode(live.monitor, flushJob, nothing, node);
      if (node === mirror && (await hasReconnected(live, dev))) throw new Error(reconnectedText);
    } catch (error) {
      memoryOf(dev).learn(node === mirror ? 'mirror' : 'primary', {
        is: 'failed',
        why: errorText(error),
        noSpace: false,
      });
      throw error;
    }
  },
  probe: async (bench, copy) => {
    const why = await ask(bench, copy);
    if (why !== null) bench.memoryOf(copy.dev).failed(why);
  },
  suspect: ({ memoryOf }, { dev, side, why }) => {
    memoryOf(dev).learn(side, { is: 'failed', why, noSpace: false });
    return Promise.resolve();
  },
  requireAnswer: async (bench, copy) => {
    const why = await ask(bench, copy);
    if (why !== null) throw new Error(why);
  },
  takeInstant: async ({ live, memoryOf, scratch }, { dev, ...of }) => {
    const { verification } = memoryOf(dev);
    if (verification === null) return;
    try {
      const where = { scratch, recipient: live.recipient };
      verification.taken(await takeInstant(live.monitor, { dev, ...of }, where, verification.instants));
    } catch (error) {
      // It is the verify that fails, not the protection; what there is of the instant is taken away next.
      verification.stop(error as Error);
    }
  },
  endInstant: async ({ live, memoryOf, scratch, note }, { dev, why }) => {
    const { verification } = memoryOf(dev);
    if (why !== null) verification?.stop(verifyStopped(dev, why));
    await dropInstant(live.monitor, dev, scratch);
    if (verification === null) note('verify-failed', dev, { why: 'the agent ended while it ran' });
  },
  markDiffering: async ({ live, memoryOf }, { dev, sizeBytes, epochs, extents }) => {
    await markInEpoch(live.monitor, { dev, pair: diskNames(dev).pair, epochs, sizeBytes }, extents);
    memoryOf(dev).verification?.marked();
  },
  buildLayers: ({ live }, { dev, names }) => buildLayers(live.monitor, dev, names),
  startCopy: async ({ live, memoryOf }, { dev, to, whileStopped }) => {
    memoryOf(dev).copyFailed = null;
    try {
      if (whileStopped) await staysPaused(live.monitor);
      await live.startCopy(dev, to, memoryOf(dev).pace.bytesPerS, whileStopped ? stoppedCopyDeadlineMs : undefined);
    } catch (error) {
      memoryOf(dev).copyFailed = errorText(error);
      throw error;
    }
  },
  abortCopy: ({ live }, { dev }) => live.endCopy(dev, { pivot: false }),
  pivot: ({ live }, { dev }) => live.endCopy(dev, { pivot: true }),
  record: ({ record: now, saveRecord }, { record }) => saveRecord(withSealsOf(now(), record)),
  defineSource: async ({ live, memoryOf, note }, { dev, image }) => {
    try {
      await live.definePersistentImage(dev, image);
    } catch (error) {
      // The record is the authority, so the guest need not wait: the XML follows as soon as it can.
      live.forgetPersistentDisks();
      memoryOf(dev).failed(`the persistent XML could not be changed: ${errorText(error)}`);
      note('step-failed', dev, { step: 'defineSource', error: errorText(error) });
    }
  },
  forget: ({ forgetDisk }, { dev }) => forgetDisk(dev),
  note: ({ note }, { event, disk, detail }) => {
    note(event, disk, detail);
    return Promise.resolve();
  },
};

/** @throws StepFailed */
export async function execute(step: Step, bench: Workbench): Promise<void> {
  try {
    await (executors[step.step] as (bench: Workbench, args: Step) => Promise<void>)(bench, step);
  } catch (error) {
    throw new StepFailed(step, error);
  }
}

/** Puts the device on other nodes. What happened before that began is past, though QEMU may tell of it later. */
async function moveOn(
  { live, memoryOf }: Workbench,
  dev: string,
  move: (live: LiveDomain) => Promise<void>,
): Promise<void> {
  const atMs = performance.now();
  await move(live);
  memoryOf(dev).movedOn(atMs);
}

/** Why a copy does not answer; null if it does. */
async function ask(bench: Workbench, { dev, side, image, node }: StepArguments['probe']): Promise<string | null> {
  const answer = await probeImage(image, lookOptions(bench));
  const why = !answer.ok ? answer.reason : node === null ? null : await askQemu(bench, dev, side, node);
  bench.memoryOf(dev).learn(side, why === null ? { is: 'answering' } : { is: 'failed', why, noSpace: false });
  return why === null ? null : `the ${side} does not answer: ${why}`;
}

/** As `ask`, of what answers others: a read that hangs would take QEMU along. */
async function askQemu({ live }: Workbench, dev: string, side: Side, node: string): Promise<string | null> {
  try {
    await readNode(live.monitor, diskNames(dev), node);
  } catch (error) {
    // A read that QEMU does not let begin tells nothing of the copy.
    if (!(error instanceof QmpError)) return `its storage does, but not to QEMU: ${errorText(error)}`;
  }
  return side === 'mirror' && (await hasReconnected(live, dev)) ? reconnectedText : null;
}

/** Another process asks the storage first: a QEMU that opens one which hangs would hang with it. */
async function requireToAnswer(bench: Workbench, image: Image): Promise<void> {
  const answer = await probeImage(image, lookOptions(bench));
  if (!answer.ok) throw new Error(`'${imageName(image)}' does not answer: ${answer.reason}`);
}

/** What answers others, and keeps QEMU waiting, would make the guest wait as soon as it is brought up to date. */
function requireRested({ live, memoryOf }: Workbench, dev: string, side: Side, image: Image): void {
  const restMs = memoryOf(dev).restMs(side);
  if (restMs === 0) return;
  const seconds = Math.ceil(restMs / 1000);
  throw new Error(
    `'${imageName(image)}' answers, but kept QEMU waiting: it is tried again in ${seconds} s, or by virt-cdp resync ${live.ref.name}`,
  );
}

/** Somebody has written to the copy, or replaced it, since it was sealed: it is not what the domain's end has left either. */
async function isTouched(
  { memoryOf, note }: Workbench,
  { dev, side, image, sealed }: { dev: string; side: Side; image: Image; sealed: string | null },
): Promise<boolean> {
  if (sealed === null || (await fingerprint(image, toolDeadline))?.text === sealed) return false;
  const memory = memoryOf(dev);
  memory.touched[side] = true;
  memory.atStop = null;
  note('copy-changed', dev, { copy: side });
  return true;
}

function lookOptions({ probeDeadlineMs, opener }: Workbench): LookOptions {
  return { deadlineMs: probeDeadlineMs, opener };
}
