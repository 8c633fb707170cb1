import { diskNames } from '../../graph/names.ts';
import type { PrimaryNodes } from '../../graph/view.ts';
import type { Image } from '../../domain/image.ts';
import { imageName, sameStorage, waitsWithoutEnd } from '../../storage/image.ts';
import { probe, probeStorage, requireAnswer } from './asking.ts';
import { damageOf, isFirstCopy, isPairByJob } from './damage.ts';
import type { DiskObservation, Observation } from '../observation.ts';
import { nothing, steps, surgery, type DiskPlan } from './disk-plan.ts';
import { currentCopy, type DiskRecord } from '../record.ts';
import { planFirstCopy, planPairByJob } from './plan-by-job.ts';
import { planRebuild, copyAndPivot } from './plan-rebuild.ts';
import { planSync } from './plan-sync.ts';
import { planVerify } from './plan-verify.ts';
import type { Side } from '../model.ts';
import {
  adoptRebuilt,
  armIdentical,
  asPair,
  closeForGood,
  copied,
  degrade,
  dropLayers,
  failOver,
  failOverByJob,
  finishArming,
  giveBack,
  leavePair,
  openMirror,
  onNewPrimary,
  newBitmap,
  onImage,
  pivot,
  seal,
  stale,
  trackPrimary,
  wait,
  type DiskStep,
  type PresentDisk,
  type Surgery,
} from './surgery.ts';

export function planDisk(o: Observation, disk: DiskObservation): DiskPlan {
  if (disk.orphans.length > 0) return disk.mayRetry ? steps(...closeOrphans(disk)) : nothing;
  if (disk.graph === null) return planAbsent(o, disk);
  const present: PresentDisk = { ...disk, graph: disk.graph };
  const verifying = planVerify(o, present);
  if (verifying !== null) return verifying;
  switch (disk.graph.layout) {
    case 'pair':
      return planPair(o, present);
    case 'primary':
      return planPrimary(o, present);
    case 'mirror':
    case 'layered':
      return planMirror(o, present);
    case 'parked':
      return planParked(o, present);
  }
}

function closeOrphans({ record, orphans }: DiskObservation): DiskStep[] {
  const { dev } = record;
  const closed = orphans.includes(diskNames(dev).mirror) ? [seal(record, 'mirror')] : [];
  return [{ step: 'closeOrphans', dev, nodes: orphans }, ...closed];
}

/**
 * The domain runs without the disk. Whoever plugs it in again asks nobody, and the guest writes to the primary alone at once: the
 * record says so beforehand. With `instance` gone it will be judged like a disk that was started. The definition may still have it.
 */
function planAbsent(o: Observation, { record, xmlBehind, mayRetry }: DiskObservation): DiskPlan {
  const { dev, primary, mirror, intent } = record;
  if (intent.kind === 'remove' && !xmlBehind) return steps({ step: 'forget', dev });
  if (primary.current && (mirror.current || record.instance !== null))
    return steps({
      step: 'recordDisk',
      record: {
        ...record,
        instance: null,
        mirror: stale(mirror, record.state === 'stopped' ? record.since : o.now),
        track: null,
        atStop: null,
        exposedSince: record.exposedSince ?? o.now,
      },
    });
  if (!xmlBehind || !mayRetry) return nothing;
  return steps({ step: 'defineSource', dev, image: (primary.current ? primary : mirror).image });
}

/** The two-copy writer is under the device, or was about to be. */
function planPair(o: Observation, disk: PresentDisk): DiskPlan {
  const { graph, record } = disk;
  const { primary } = graph;
  if (primary === null) return nothing;
  if (isFirstCopy(disk)) return planFirstCopy(o, disk) ?? keepPair(disk, primary);
  switch (damageOf(disk)) {
    case 'primary':
      return planWithoutPrimary(o, disk, primary);
    case 'mirror':
      return planWithoutMirror(o, disk, primary);
    case 'unknown':
      return steps(...probes(disk));
    case 'both':
      return disk.mayRetry ? steps(...probes(disk)) : nothing;
    case 'primary-full':
      return nothing;
    case 'none':
  }
  if (graph.layout === 'parked' && record.intent.kind !== 'failover') return surgery(finishArming(o, disk));
  switch (record.intent.kind) {
    case 'hold':
    case 'remove':
    case 'resync':
      return planToPrimary(o, disk, primary);
    case 'failover':
      return planToMirror(o, disk, primary);
    case 'protect':
    case 'rebuild':
      if (disk.withoutStopPolicy !== null && !record.primary.current) return planToMirror(o, disk, primary);
      if (disk.engine === 'mirror' && o.record.policy === 'strict') return planToPrimary(o, disk, primary);
      return keepPair(disk, primary);
  }
}

/**
 * The primary failed. Where its guest does not wait a crash must not end on the pair again: the file may be another one by then, and of a
 * failed read that the mirror answered QEMU tells once.
 */
function planWithoutPrimary(o: Observation, disk: PresentDisk, primary: PrimaryNodes): DiskPlan {
  const { graph, record } = disk;
  const isTold = disk.ioFailed || graph.layout === 'parked';
  return (disk.primaryGone === null && isTold) || record.intent.kind === 'failover'
    ? planToMirror(o, disk, primary)
    : steps({ step: 'recordDisk', record: { ...record, intent: { kind: 'failover' } } });
}

function planToMirror(o: Observation, disk: PresentDisk, primary: PrimaryNodes): DiskPlan {
  const leave = disk.withoutStopPolicy === null ? failOver : failOverByJob;
  return surgery(onlyIfAnswering(disk, 'mirror', leave(o, asPair(disk), primary)));
}

/** The mirror failed. */
function planWithoutMirror(o: Observation, disk: PresentDisk, primary: PrimaryNodes): DiskPlan {
  if (isPairByJob(disk.graph)) return steps(...leavePair(o, disk, primary));
  const stayParked = disk.record.intent.kind !== 'remove' && o.record.policy === 'strict' && disk.engine === 'quorum';
  return surgery(onlyIfAnswering(disk, 'primary', degrade(o, asPair(disk), primary, { stayParked })));
}

/** Both copies are well, and the guest is to go on with the primary alone. */
function planToPrimary(o: Observation, disk: PresentDisk, primary: PrimaryNodes): DiskPlan {
  return isPairByJob(disk.graph)
    ? steps(requireAnswer(disk, 'primary'), ...leavePair(o, disk, primary))
    : surgery(onlyIfAnswering(disk, 'primary', degrade(o, asPair(disk), primary, { stayParked: false })));
}

/**
 * Unless an I/O has just shown which copy is well, the other must not be left for one that died unnoticed. What the guest is shown
 * through a mirror job says nothing of the mirror.
 */
function onlyIfAnswering(disk: PresentDisk, side: Side, leaving: Surgery): Surgery {
  if (disk.ioFailed && !(disk.engine === 'mirror' && side === 'mirror')) return leaving;
  return { ...leaving, before: [requireAnswer(disk, side), ...leaving.before] };
}

/** Both copies get every write. What is left: what a crash left undone, and the epochs. */
function keepPair(disk: PresentDisk, primary: PrimaryNodes): DiskPlan {
  const { graph, record, liveImage, epochs } = disk;
  const { dev } = record;
  const moved = liveImage !== null && !sameStorage(liveImage, record.primary.image);
  const isWhole = record.primary.current && record.mirror.current;
  const recorded = isWhole && record.track === null && !moved;
  const present = moved ? onImage(record, liveImage) : record;
  return steps(
    // A stop flushes what the job has written, and swallows it if that failed with the connection; and a flush through a connection
    // that was made since the look says nothing of what came before it.
    ...(!isWhole || epochs.flushed.length > 0 ? [{ step: 'requireConnected' as const, dev }] : []),
    ...(recorded
      ? []
      : [
          {
            step: 'recordDisk' as const,
            record: {
              ...present,
              primary: currentCopy(present.primary),
              mirror: currentCopy(record.mirror),
              track: null,
              exposedSince: null,
              engine: disk.engine,
            },
          },
          ...(isWhole ? [] : copied(record)),
        ]),
    ...graph.tracking.map(({ on, name }) => untrack(dev, primary, on, name)),
    ...(epochs.rotate ? [{ step: 'addEpoch' as const, dev }] : []),
    ...epochs.flushed.map((bitmap) => ({ step: 'dropEpoch' as const, dev, bitmap })),
    ...(disk.xmlBehind && disk.mayRetry ? [{ step: 'defineSource' as const, dev, image: record.primary.image }] : []),
  );
}

/** libvirt's own node is under the device. */
function planPrimary(o: Observation, disk: PresentDisk): DiskPlan {
  const { graph, record, liveImage } = disk;
  const { dev } = record;
  const { primary } = graph;
  if (primary === null || liveImage === null) return nothing;
  if (sameStorage(liveImage, record.mirror.image)) return planMirrorByLibvirt(o, disk);
  if (!record.primary.current) return nothing;
  if (record.instance !== o.instance) return planStarted(o, disk, primary, liveImage);
  if (record.mirror.current || !sameStorage(liveImage, record.primary.image)) {
    return steps({
      step: 'recordDisk',
      record: {
        ...onImage(record, liveImage),
        mirror: stale(record.mirror, record.state === 'stopped' ? record.since : o.now),
        track: null,
      },
    });
  }
  if (disk.ioFailed && graph.layout !== 'parked') return askAgain(disk, 'primary');
  if (disk.xmlBehind && disk.mayRetry) return steps({ step: 'defineSource', dev, image: record.primary.image });
  switch (record.intent.kind) {
    case 'remove':
      return disk.xmlBehind ? nothing : steps(...closeMirror(disk, primary), { step: 'forget', dev });
    case 'hold':
      return holdPrimary(disk, primary);
    case 'resync':
      return steps(
        ...(graph.syncJob === null ? [] : [{ step: 'cancelSync' as const, dev }]),
        ...graph.tracking.map(({ on, name }) => untrack(dev, primary, on, name)),
        {
          step: 'recordDisk',
          record: {
            ...record,
            track: { bitmap: newBitmap(o, graph), base: 'copying', why: 'that was asked for' },
            intent: { kind: 'protect' },
          },
        },
      );
    case 'protect':
    case 'failover':
    case 'rebuild':
      if (disk.obstacle !== null || graph.otherJob !== null) return nothing;
      // Nothing is put on the park that QEMU could not open again.
      if (disk.primaryGone !== null) return nothing;
      if (disk.withoutStopPolicy !== null) return planPairByJob(o, disk, primary);
      if (disk.atStop?.clean === true && record.track === null)
        return planIdentical(disk, primary, disk.atStop.primary);
      if (graph.layout === 'primary' && strictlyParked(o, disk)) return surgery(wait(disk));
      if (disk.atStop?.clean === false && graph.syncJob === null)
        return planCrashed(o, disk, primary, disk.atStop.primary);
      return planSync(disk, {
        target: 'mirror',
        opening: graph.mirrorOpen ? null : (sealed) => openMirror(disk, sealed),
        closeSteps: [{ step: 'closeMirror', dev }, seal(record, 'mirror')],
        newBitmap: o,
        primary,
      });
  }
}

/**
 * A QEMU has opened the primary anew, and the guest has run on it alone since. An image of which the primary is no part is not
 * the disk that the mirror was made of, and must not overwrite it.
 */
function planStarted(o: Observation, disk: PresentDisk, primary: PrimaryNodes, liveImage: Image): DiskPlan {
  const { record, graph } = disk;
  const { dev, track } = record;
  const same = sameStorage(liveImage, record.primary.image);
  if (!same && !primary.images.includes(imageName(record.primary.image))) return nothing;
  const startsStrict = o.record.policy === 'strict' && record.instance !== null;
  const started: DiskRecord = {
    ...onImage(record, liveImage),
    instance: o.instance,
    mirror: stale(record.mirror, record.state === 'stopped' ? record.since : o.now),
    track: null,
    exposedSince: startsStrict ? (record.exposedSince ?? o.now) : record.exposedSince,
  };
  const kept = same && track?.base === 'whole' ? graph.tracking.find(({ name }) => name === track.bitmap) : undefined;
  if (kept?.on !== 'primary') return steps({ step: 'recordDisk', record: started });
  // The image has kept it, and QEMU has recorded in it since it opened the image. A copy of the image as it was at an earlier
  // stop has an earlier bitmap: each start gives it a new name, so that it is not taken for this one.
  const bitmap = newBitmap(o, graph);
  return steps(
    trackPrimary(record, primary, bitmap, [{ node: primary.data, name: kept.name }]),
    { step: 'recordDisk', record: { ...started, track: { bitmap, base: 'whole' } } },
    untrack(dev, primary, 'primary', kept.name),
  );
}

/** The copies were identical when the domain stopped. If the guest has not written yet, they are armed as they are. */
function planIdentical(disk: PresentDisk, primary: PrimaryNodes, fingerprint: string | null): DiskPlan {
  const { graph, record, mayRetry } = disk;
  const { mirror } = record;
  if (graph.mirrorOpen) return surgery(armIdentical(disk, primary, fingerprint));
  return mayRetry ? steps(openMirror(disk, mirror.sealed ?? null)) : nothing;
}

/**
 * The copies differ at most in what the guest was never told to be written. A sync that copies the primary as it was before the
 * guest's first write keeps the mirror whole as of the crash while it runs. Whether it was, is known only after it began.
 */
function planCrashed(o: Observation, disk: PresentDisk, primary: PrimaryNodes, fingerprint: string | null): DiskPlan {
  const { graph, record, mayRetry } = disk;
  const { dev, mirror } = record;
  if (!mayRetry || o.migrating) return nothing;
  if (!graph.mirrorOpen) return steps(openMirror(disk, mirror.sealed ?? null));
  const bitmap = newBitmap(o, graph);
  const { data: from } = primary;
  const image = record.primary.image;
  const why = 'the domain did not end in order';
  const copying: DiskRecord = { ...record, track: { bitmap, base: 'copying', why } };
  return steps(
    { step: 'recordDisk', record: { ...copying, mirror: { ...mirror, consistentAsOf: null } } },
    { step: 'track', dev, node: from, bitmap, merged: [] },
    { step: 'startSnapshotSync', dev, from, to: diskNames(dev).mirror },
    { step: 'requireUntouched', dev, qdev: graph.qdev, node: from, image, fingerprint },
    { step: 'recordDisk', record: copying },
  );
}

/** Held on request: nothing of ours in the way of libvirt's own jobs but a bitmap on the disk's node. */
function holdPrimary(disk: PresentDisk, primary: PrimaryNodes): DiskPlan {
  const { graph, record } = disk;
  const tracked = graph.tracking.some(({ name, on }) => on === 'primary' && name === record.track?.bitmap);
  if (record.track !== null && !tracked) return steps({ step: 'recordDisk', record: { ...record, track: null } });
  const closed = graph.mirrorOpen ? [seal(record, 'mirror')] : [];
  return steps(...closeMirror(disk, primary, record.track?.bitmap), ...closed);
}

/** The mirror is under the device, by its own node or with libvirt's names over it. */
function planMirror(o: Observation, disk: PresentDisk): DiskPlan {
  const { graph, record } = disk;
  const { dev } = record;
  if (record.primary.current) {
    return steps({ step: 'recordDisk', record: { ...record, primary: stale(record.primary, o.now) } });
  }
  if (disk.ioFailed) return askAgain(disk, 'mirror');
  if (disk.xmlBehind && disk.mayRetry) return steps({ step: 'defineSource', dev, image: record.mirror.image });
  if (record.intent.kind === 'remove') return disk.xmlBehind ? nothing : steps({ step: 'forget', dev });
  const mayPark = disk.withoutStopPolicy === null;
  if (graph.layout === 'layered' || (record.intent.kind === 'rebuild' && mayPark)) return planRebuild(o, disk);
  return graph.primary !== null && graph.otherJob === null && disk.mayRetry
    ? steps(...closeForGood(record, graph.primary))
    : nothing;
}

/** The domain was started on the mirror: libvirt itself opened it, under its own names. */
function planMirrorByLibvirt(o: Observation, disk: PresentDisk): DiskPlan {
  const { record } = disk;
  if (!record.mirror.current) return nothing;
  if (record.primary.current || record.instance !== o.instance) {
    return steps({
      step: 'recordDisk',
      record: {
        ...record,
        instance: o.instance,
        primary: stale(record.primary, record.state === 'stopped' ? record.since : o.now),
        track: null,
        exposedSince: record.exposedSince ?? o.now,
      },
    });
  }
  if (disk.ioFailed) return askAgain(disk, 'mirror');
  if (record.intent.kind === 'remove') return steps({ step: 'forget', dev: record.dev });
  if (record.intent.kind !== 'rebuild' || disk.withoutStopPolicy !== null) return nothing;
  if (record.intent.original)
    return steps({ step: 'recordDisk', record: { ...record, intent: { ...record.intent, original: false } } });
  return copyAndPivot(disk);
}

/** A surgery was broken off here: finish it where the graph or the record show where it led, otherwise undo it. */
function planParked(o: Observation, disk: PresentDisk): DiskPlan {
  const { graph, record } = disk;
  const { primary } = graph;
  if (graph.syncJob !== null && !strictlyParked(o, disk)) return steps({ step: 'cancelSync', dev: record.dev });
  const to = rebuiltOnto(disk);
  if (graph.pair !== null)
    return planPair(o, to === null ? disk : { ...disk, record: onNewPrimary(record, to), xmlBehind: true });
  if (!record.primary.current && record.intent.kind === 'rebuild' && !record.intent.original) {
    if (primary !== null && to !== null) return surgery(adoptRebuilt(o, disk, primary, to));
    if (graph.otherJob?.ready === true) return surgery(pivot(disk));
  }
  if (!record.primary.current) {
    if (graph.layers.length > 0 && graph.otherJob === null) return surgery(dropLayers(disk));
    const root = graph.layers[0] ?? (graph.mirrorOpen ? diskNames(record.dev).mirror : primary?.top);
    return root === undefined ? nothing : surgery(giveBack(disk, root));
  }
  if (record.mirror.current && graph.mirrorOpen && graph.tracking.some(({ on }) => on === 'mirror')) {
    const { health } = disk;
    if (primary === null || health.mirror.is !== 'failed') return surgery(failOver(o, disk, primary));
    // The guest has written nothing since it was parked: the primary has all that the mirror may lack.
    if (health.primary.is === 'failed') return disk.mayRetry ? steps(...probes(disk)) : nothing;
  }
  if (primary === null) return nothing;
  if (record.mirror.current) return surgery(degrade(o, disk, primary, { stayParked: false }));
  return strictlyParked(o, disk) ? planPrimary(o, disk) : surgery(giveBack(disk, primary.top));
}

/** The new primary that libvirt has moved to, and the record does not know yet. */
function rebuiltOnto({ record: { primary, intent }, liveImage }: PresentDisk): Image | null {
  const moved =
    !primary.current &&
    intent.kind === 'rebuild' &&
    !intent.original &&
    liveImage !== null &&
    sameStorage(liveImage, intent.to);
  return moved ? intent.to : null;
}

/** With policy `strict` a guest that lost its mirror waits, parked, until both copies are current again. */
function strictlyParked(o: Observation, { record, engine }: PresentDisk): boolean {
  return (
    o.record.policy === 'strict' &&
    engine === 'quorum' &&
    record.exposedSince !== null &&
    record.primary.current &&
    record.intent.kind === 'protect'
  );
}

/**
 * The only copy in use failed: it is asked until it answers, and then the guest goes on (endOfPause). During a delta the guest's
 * writes wait for the copy that is brought up to date, whose failure then is the guest's: that copy is taken for failed.
 */
function askAgain(disk: PresentDisk, side: Side): DiskPlan {
  const { graph, record, health, mayRetry } = disk;
  const { dev } = record;
  if (graph.syncJob !== null) {
    const why = "the guest's I/O failed while it was brought up to date";
    const target = side === 'primary' ? 'mirror' : 'primary';
    return steps({ step: 'cancelSync', dev }, { step: 'suspect', dev, side: target, why });
  }
  if (health[side].is === 'answering') return nothing;
  if (health[side].is !== 'unknown' && !mayRetry) return nothing;
  const { image } = record.mirror;
  const viaRelay = side === 'mirror' && graph.mirrorOpen && waitsWithoutEnd(image);
  return steps(...(viaRelay ? [{ step: 'reviveRelay' as const, dev, image }] : []), probeStorage(disk, side));
}

/** A primary whose file is gone can't be asked from outside: it is taken to answer QEMU. */
function probes(disk: PresentDisk): DiskStep[] {
  return [...(disk.primaryGone === null ? [probe(disk, 'primary')] : []), probe(disk, 'mirror')];
}

function closeMirror(disk: PresentDisk, primary: PrimaryNodes, keptBitmap?: string): DiskStep[] {
  const { graph, record } = disk;
  const { dev } = record;
  return [
    ...(graph.syncJob === null ? [] : [{ step: 'cancelSync' as const, dev }]),
    ...graph.tracking.filter(({ name }) => name !== keptBitmap).map(({ on, name }) => untrack(dev, primary, on, name)),
    ...(graph.mirrorOpen ? [{ step: 'closeMirror' as const, dev }] : []),
  ];
}

function untrack(dev: string, primary: PrimaryNodes, on: Side, bitmap: string): DiskStep {
  return { step: 'untrack', node: on === 'primary' ? primary.data : diskNames(dev).mirror, bitmap };
}
