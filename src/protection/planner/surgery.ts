import type { Image } from '../../domain/image.ts';
import type { Engine } from '../../graph/engine.ts';
import { diskNames, trackName } from '../../graph/names.ts';
import { sameStorage } from '../../storage/image.ts';
import type { DiskGraph, PrimaryNodes } from '../../graph/view.ts';
import type { BitmapName } from '../../qmp/commands.ts';
import type { Side } from '../model.ts';
import type { DiskObservation, Observation } from '../observation.ts';
import { currentCopy, type CopyRecord, type DiskRecord } from '../record.ts';
import type { Step } from '../steps.ts';

/** A step of one disk's plan; `recordDisk` becomes the domain's `record`. */
export type DiskStep = Step | { step: 'recordDisk'; record: DiskRecord };

/** What is done to one disk while the domain is paused, in the safe order: park, operate, record, give back, go on. */
export interface Surgery {
  dev: string;
  qdev: string;
  /** What the device is on when the plan is made. */
  from: string;
  /** While the guest may still run. */
  before: Step[];
  /** The device is on the park meanwhile; else nothing but the pause keeps the guest from writing. */
  parks: boolean;
  /** With the device on the park, or while the guest stands still. */
  parked: Step[];
  record: DiskRecord;
  /** The record says something new and must be durable before the guest goes on. */
  recorded: boolean;
  /** What is told as soon as that is recorded: whatever becomes of the rest, nothing else would tell it. */
  told: Step[];
  /** What the persistent XML must name from now on; null leaves it. */
  persist: Image | null;
  /** What the device has in the end, and gets when it leaves the park; null: it stays, and the next look decides. */
  root: string | null;
  /** With the device on its root, before the guest goes on. */
  given: Step[];
  /** When the guest runs again. */
  after: DiskStep[];
}

/** A disk under observation whose device exists. */
export type PresentDisk = DiskObservation & { graph: DiskGraph };

/** Puts the two-copy writer under the device: the last delta, flushed, then both copies are current. */
export function arm(disk: PresentDisk, primary: PrimaryNodes, bitmap: string): Surgery {
  const { graph, record } = disk;
  const { dev } = record;
  const { mirror, pair } = diskNames(dev);
  const fromPrimary = record.primary.current;
  const from = fromPrimary ? primary.data : mirror;
  const to = fromPrimary ? mirror : primary.top;
  return {
    ...surgeryOn(disk),
    before: [...park(graph, dev), { step: 'flush', dev, node: to }],
    parked: [
      { step: 'finishDelta', dev, from, to, bitmap: passBitmap(bitmap) },
      { step: 'flush', dev, node: to },
      { step: 'compose', dev, primaryTop: primary.top, engine: disk.engine },
      { step: 'addEpoch', dev },
    ],
    record: bothCurrent(record, disk.engine),
    recorded: true,
    told: copied(record),
    ...(!fromPrimary && { persist: record.primary.image }),
    root: pair,
    after: [
      { step: 'untrack', node: from, bitmap: passBitmap(bitmap) },
      { step: 'untrack', node: from, bitmap },
    ],
  };
}

/** Puts the two-copy writer over copies that nobody has written to since they were identical. */
export function armIdentical(disk: PresentDisk, primary: PrimaryNodes, fingerprint: string | null): Surgery {
  const { graph, record } = disk;
  const { dev } = record;
  return {
    ...surgeryOn(disk),
    before: park(graph, dev),
    parked: [
      { step: 'requireUntouched', dev, qdev: graph.qdev, node: primary.data, image: record.primary.image, fingerprint },
      { step: 'compose', dev, primaryTop: primary.top, engine: disk.engine },
      { step: 'addEpoch', dev },
    ],
    record: bothCurrent(record, disk.engine),
    recorded: true,
    told: [{ step: 'note', event: 'armed', disk: dev, detail: { copied: 0 } }],
    root: diskNames(dev).pair,
  };
}

/** Leaves the guest waiting on the park. */
export function wait(disk: PresentDisk): Surgery {
  return { ...surgeryOn(disk), before: park(disk.graph, disk.record.dev) };
}

/** A pair that a crash left parked, or that was just composed, is given to the device. */
export function finishArming(o: Observation, disk: PresentDisk): Surgery {
  const { record, graph, xmlBehind } = disk;
  const { dev } = record;
  const known = o.record.disks.find((other) => other.dev === dev);
  return {
    ...surgeryOn(disk),
    parked: graph.pair?.epochs.length === 0 ? [{ step: 'addEpoch', dev }] : [],
    record: bothCurrent(record, disk.engine),
    recorded: true,
    ...((xmlBehind || !record.primary.current) && { persist: record.primary.image }),
    told: known === undefined || (known.primary.current && known.mirror.current) ? [] : copied(known),
    root: diskNames(dev).pair,
  };
}

/** Goes on with the primary alone; what the mirror lacks from now on is tracked, and what it may lack already is merged in. */
export function degrade(
  o: Observation,
  disk: PresentDisk,
  primary: PrimaryNodes,
  options: { stayParked: boolean },
): Surgery {
  const { graph, record } = disk;
  const { dev } = record;
  const bitmap = newBitmap(o, graph);
  return {
    ...surgeryOn(disk),
    before: park(graph, dev),
    parked: [
      trackPrimary(record, primary, bitmap, written(disk, 'primary', primary.data)),
      ...(graph.pair === null ? [] : [{ step: 'dropPair', dev } as const]),
    ],
    record: {
      ...record,
      mirror: stale(record.mirror, o.now),
      track: { bitmap, base: 'whole' },
      exposedSince: record.exposedSince ?? o.now,
    },
    recorded: true,
    root: options.stayParked ? null : primary.top,
    after: [{ step: 'closeMirror', dev }, seal(record, 'mirror')],
  };
}

/** What is composed is equal, also when a crash kept that from being recorded. */
export function asPair(disk: PresentDisk): PresentDisk {
  const { record } = disk;
  return {
    ...disk,
    xmlBehind: disk.xmlBehind || !record.primary.current,
    record: { ...record, primary: currentCopy(record.primary), mirror: currentCopy(record.mirror) },
  };
}

/**
 * Goes on with the primary alone without a pause: when a mirror job ends, its device is the primary's again. What the mirror lacks is
 * recorded before, together with all that it may lack.
 */
export function leavePair(o: Observation, disk: PresentDisk, primary: PrimaryNodes): DiskStep[] {
  const { parked, record, persist, after } = degrade(o, asPair(disk), primary, { stayParked: false });
  const [track, ...drop] = parked;
  const { graph, health } = disk;
  // Whatever failed, writes that came later may have reached the mirror again.
  const missedSome = graph.pair?.inSync === false || health.mirror.is === 'failed';
  const mirror = missedSome ? { ...record.mirror, consistentAsOf: null } : record.mirror;
  return [
    ...(track === undefined ? [] : [track]),
    { step: 'recordDisk', record: { ...record, mirror } },
    ...(persist === null ? [] : [{ step: 'defineSource' as const, dev: record.dev, image: persist }]),
    ...drop,
    ...after,
  ];
}

/** Goes on with the mirror alone; the mirror's node has been open all the time and is never reopened. */
export function failOver(o: Observation, disk: PresentDisk, primary: PrimaryNodes | null): Surgery {
  const { graph, record } = disk;
  const { dev } = record;
  const { mirror } = diskNames(dev);
  const bitmap = newBitmap(o, graph);
  const gone = disk.primaryGone?.deleted === true ? disk.primaryGone.path : null;
  return {
    ...surgeryOn(disk),
    before: [...park(graph, dev), ...(gone === null ? [] : [{ step: 'standIn', dev, path: gone } as const])],
    parked: [
      // It may have failed since the look: the guest was not told, and the job that knows is about to go.
      ...(graph.pair?.engine === 'mirror' ? [{ step: 'requireInSync', dev } as const] : []),
      { step: 'track', dev, node: mirror, bitmap, merged: written(disk, 'mirror', mirror) },
      ...(graph.pair === null ? [] : [{ step: 'dropPair', dev } as const]),
      // The guest's flushes have not reached it.
      ...(disk.engine === 'mirror' ? [{ step: 'flush', dev, node: mirror } as const] : []),
    ],
    record: {
      ...record,
      primary: stale(record.primary, o.now),
      // What lies at the path of a file that was lost is not what the mirror's bitmap began with: no delta will do.
      track: { bitmap, base: disk.primaryGone === null ? 'whole' : 'copying' },
      layerNames: primary === null ? record.layerNames : layerNames(primary),
      intent: { kind: 'protect' },
      exposedSince: record.exposedSince ?? o.now,
    },
    recorded: true,
    persist: record.mirror.image,
    root: mirror,
    after: [
      ...(gone === null ? [] : [{ step: 'removeStandIn', dev, path: gone } as const]),
      ...(primary === null ? [] : closeForGood(record, primary)),
    ],
  };
}

/**
 * The same without a park, whose errors a guest without the stop policy would be told of if somebody resumed it: the job itself moves the
 * device. As long as it is in sync the guest may write at any moment, and both copies have it.
 */
export function failOverByJob(o: Observation, disk: PresentDisk, primary: PrimaryNodes): Surgery {
  const { before, parked, ...rest } = failOver(o, disk, primary);
  const { dev } = disk.record;
  return {
    ...rest,
    before: before.filter(({ step }) => step !== 'buildPark'),
    parks: false,
    parked: [
      { step: 'requireConnected', dev },
      ...parked.filter(({ step }) => step === 'requireInSync' || step === 'track'),
    ],
    given: [{ step: 'promote', dev }],
  };
}

/** Has a mirror job copy everything and write to both copies from now on, without a park. */
export function beginPair(disk: PresentDisk, primary: PrimaryNodes): Surgery {
  const { dev } = disk.record;
  return {
    ...surgeryOn(disk),
    parks: false,
    parked: [
      { step: 'composeCopying', dev, primaryTop: primary.top },
      { step: 'addEpoch', dev },
    ],
    root: diskNames(dev).pair,
  };
}

/** Puts libvirt's names over the mirror, so that libvirt's copy job can run on the device's real root. */
export function buildLayers(disk: PresentDisk, to: Image): Surgery {
  const { graph, record } = disk;
  const [top] = record.layerNames;
  return {
    ...surgeryOn(disk),
    before: park(graph, record.dev),
    parked: [{ step: 'buildLayers', dev: record.dev, names: topLayers(record.layerNames) }],
    root: top ?? null,
    ...(disk.ioThread
      ? { given: [{ step: 'startCopy', dev: record.dev, to, whileStopped: true }] }
      : { after: [{ step: 'startCopy', dev: record.dev, to, whileStopped: false }] }),
  };
}

/**
 * Starts libvirt's copy job while the guest stands still. QEMU before 8.0 crashes if a guest on an I/O thread writes in the moment between a
 * write-blocking mirror job's filter and its buffers (7.2, block/mirror.c: mirror_start_job, mirror_run; seen in one start of 60).
 */
export function startCopyStopped(disk: PresentDisk, to: Image): Surgery {
  const { graph, record } = disk;
  return {
    ...surgeryOn(disk),
    before: park(graph, record.dev),
    root: graph.root,
    given: [{ step: 'startCopy', dev: record.dev, to, whileStopped: true }],
  };
}

/** Takes libvirt's names off the mirror again. */
export function dropLayers(disk: PresentDisk): Surgery {
  const { graph, record } = disk;
  return {
    ...surgeryOn(disk),
    before: park(graph, record.dev),
    parked: [{ step: 'closePrimary', dev: record.dev, nodes: graph.layers }],
    root: diskNames(record.dev).mirror,
  };
}

/** Lets libvirt end its copy job on the new primary; the device stays parked, so both copies stay equal until they are composed. */
export function pivot(disk: PresentDisk): Surgery {
  const { graph, record } = disk;
  return {
    ...surgeryOn(disk),
    before: park(graph, record.dev),
    parked: [{ step: 'pivot', dev: record.dev }],
    root: null,
  };
}

/** libvirt has moved to the new primary, which equals the mirror as long as the device is parked. */
export function adoptRebuilt(o: Observation, disk: PresentDisk, primary: PrimaryNodes, to: Image): Surgery {
  const { graph, record } = disk;
  const { dev } = record;
  const rebuilt = onNewPrimary(record, to);
  if (!graph.mirrorOpen) {
    const bitmap = newBitmap(o, graph);
    return {
      ...surgeryOn(disk),
      parked: [{ step: 'track', dev, node: primary.data, bitmap, merged: [] }],
      record: {
        ...rebuilt,
        mirror: stale(record.mirror, o.now),
        track: { bitmap, base: 'whole' },
        intent: record.intent,
      },
      recorded: true,
      persist: to,
      root: primary.top,
      // libvirt has closed it.
      after: [seal(record, 'mirror')],
    };
  }
  return {
    ...surgeryOn(disk),
    parked: [
      { step: 'compose', dev, primaryTop: primary.top, engine: disk.engine },
      { step: 'addEpoch', dev },
    ],
    record: bothCurrent(rebuilt, disk.engine),
    recorded: true,
    told: copied(record),
    persist: to,
    root: diskNames(dev).pair,
  };
}

/** What there is to tell of a disk whose stale copy has become current. */
export function copied({ dev, intent }: DiskRecord): Step[] {
  const event = intent.kind === 'rebuild' ? 'rebuild-finished' : 'resync-finished';
  return [
    { step: 'note', event, disk: dev, detail: {} },
    { step: 'note', event: 'armed', disk: dev, detail: {} },
  ];
}

/** The record of a disk that libvirt has moved to its new primary; the former one is nobody's any more. */
export function onNewPrimary(record: DiskRecord, to: Image): DiskRecord {
  const primary = { image: to, current: true, consistentAsOf: null, reachable: true };
  return { ...onImage(record, to), primary, intent: { kind: 'protect' }, layerNames: [] };
}

/**
 * The record of a disk whose primary is in another image: an overlay, where a snapshot was taken, or what that was committed into. Nobody must
 * start from the former one: it has none of the later writes.
 */
export function onImage(record: DiskRecord, image: Image): DiskRecord {
  const { primary, retired } = record;
  return {
    ...record,
    primary: { ...primary, image },
    retired: [...retired, primary.image].filter((former) => !sameStorage(former, image)),
  };
}

/** Leaves the park for a node, with nothing new to record. */
export function giveBack(disk: PresentDisk, root: string): Surgery {
  return { ...surgeryOn(disk), root };
}

function surgeryOn(disk: PresentDisk): Surgery {
  const { record, graph, xmlBehind } = disk;
  return {
    dev: record.dev,
    qdev: graph.qdev,
    from: graph.root,
    before: [],
    parks: true,
    parked: [],
    record,
    recorded: false,
    told: [],
    persist: xmlBehind ? record[record.primary.current ? 'primary' : 'mirror'].image : null,
    root: null,
    given: [],
    after: [],
  };
}

/** The park, and the node with which a flush is asked for. */
export function park(graph: DiskGraph, dev: string): Step[] {
  return graph.parkReady ? [] : [{ step: 'buildPark', dev, sizeBytes: graph.sizeBytes }];
}

/** `sealed` as of the step; null: its content does not matter. */
export function openMirror({ graph, record }: PresentDisk, sealed: string | null): Step {
  const { dev, mirror } = record;
  return { step: 'openMirror', dev, image: mirror.image, sizeBytes: graph.sizeBytes, sealed };
}

/** The primary is closed, and from now on nobody should write to it. */
export function closeForGood(record: DiskRecord, primary: PrimaryNodes): Step[] {
  return [{ step: 'closePrimary', dev: record.dev, nodes: primary.chain }, seal(record, 'primary')];
}

export function seal(record: DiskRecord, side: Side): Step {
  return { step: 'seal', dev: record.dev, side, image: record[side].image };
}

function bothCurrent(record: DiskRecord, engine: Engine): DiskRecord {
  return {
    ...record,
    engine,
    primary: currentCopy(record.primary),
    mirror: currentCopy(record.mirror),
    track: null,
    atStop: null,
    layerNames: [],
    intent: record.intent.kind === 'rebuild' ? { kind: 'protect' } : record.intent,
    exposedSince: null,
  };
}

export function stale(copy: CopyRecord, consistentAsOf: string | null): CopyRecord {
  return copy.current ? { ...copy, current: false, consistentAsOf } : copy;
}

/** Records in the primary's image, where that can keep a bitmap: a start in the middle of an outage needs no full sync then. */
export function trackPrimary(
  { dev, primary: { image } }: DiskRecord,
  { data }: PrimaryNodes,
  bitmap: string,
  merged: BitmapName[],
): Step {
  return { step: 'track', dev, node: data, bitmap, merged, ...(image.format === 'qcow2' && { persistent: true }) };
}

/** A name that no earlier outage had, and which tells whether the disk was resized since. */
export function newBitmap(o: Observation, { sizeBytes }: DiskGraph): string {
  return trackName(Date.parse(o.now), sizeBytes);
}

/** The bitmap of the delta passes onto a copy as long as it stays open. */
export function passBitmap(bitmap: string): string {
  return `${bitmap}-pass`;
}

/** All that the other copy may lack: the epochs, or what a surgery that was broken off has made of them. */
function written({ record, graph }: PresentDisk, side: Side, node: string): BitmapName[] {
  const epochs = (graph.pair?.epochs ?? []).map((name) => ({ node: diskNames(record.dev).pair, name }));
  // Those of a failover that is given up are on the mirror.
  const tracked = graph.tracking.flatMap(({ on, name }) =>
    on === side ? { node, name } : side === 'primary' ? { node: diskNames(record.dev).mirror, name } : [],
  );
  return [...epochs, ...tracked];
}

/** libvirt's names of the images, the topmost first, without filters. */
export function layerNames({ data, chain }: PrimaryNodes): string[] {
  return /^libvirt-\d+-/.test(data) ? chain.filter((name) => /^libvirt-\d+-(format|storage)$/.test(name)) : [];
}

/** Those of the topmost image, without its backing files'. */
export function topLayers(names: string[]): string[] {
  const index = /^libvirt-\d+-/.exec(names[0] ?? '')?.[0] ?? '';
  return names.filter((name) => name.startsWith(index));
}
