import { imageName, sameStorage } from '../storage/image.ts';
import type { Engine } from '../graph/engine.ts';
import { damageOf } from './planner/damage.ts';
import { hungState, silenceRemark } from './hangs/hang-state.ts';
import type { DiskMemory } from './disk-memory.ts';
import type { Step } from './steps.ts';
import {
  diskStates,
  type CopyStatus,
  type DiskState,
  type DiskStatus,
  type DomainStatus,
  type Guarantee,
  type JobStatus,
  type Side,
} from './model.ts';
import type { DiskObservation, Observation } from './observation.ts';
import type { DiskRecord, DomainRecord } from './record.ts';
import { passBitmap } from './planner/surgery.ts';
import { rebuildNeedsStart } from './stop-policy.ts';

/** A disk's state as one look shows it, and why it is not better. */
export interface StateView {
  state: DiskState;
  reason: string | null;
}

/** Never better than the truth: `protected` needs the two-copy writer under the device and nothing known against either copy. */
export function stateOf(o: Observation, disk: DiskObservation, trouble: string | null): StateView {
  const { graph, record, liveImage } = disk;
  if (graph === null) return { state: 'waiting', reason: 'the disk is not in the running domain' };
  if (o.run === 'running' && disk.hang !== null) return hungState(o.record.name, disk, disk.hang);
  if (graph.layout === 'parked') return parkedState(o, record, trouble);
  if (graph.layout === 'pair') {
    switch (damageOf(disk)) {
      case 'both':
        return {
          state: 'broken',
          reason:
            disk.primaryGone !== null
              ? `${disk.primaryGone.why}, and the mirror does not answer`
              : disk.withoutStopPolicy !== null
                ? 'both copies fail; the guest is told so, and goes on with the first that answers again'
                : 'both copies fail; the guest waits, and goes on with the first that answers again',
        };
      case 'primary-full':
        return { state: 'waiting', reason: "the primary's storage is full: make room, then virsh resume" };
      case 'none':
        return record.primary.current && record.mirror.current
          ? { state: 'protected', reason: silenceRemark(disk) ?? disk.withoutStopPolicy }
          : { state: 'syncing', reason: whyEverything(record) };
      case 'primary':
      case 'mirror':
      case 'unknown':
        return { state: 'exposed', reason: 'a copy failed; the guest is about to go on with the other' };
    }
  }
  const onMirror = graph.layout !== 'primary' || (liveImage !== null && sameStorage(liveImage, record.mirror.image));
  if (disk.ioFailed && disk.noSpace)
    return {
      state: 'waiting',
      reason: `the storage of the ${onMirror ? 'mirror' : 'primary'}, the only current copy, is full: make room, and the guest goes on by itself within half a minute`,
    };
  if (disk.ioFailed)
    return {
      state: 'broken',
      reason: trouble ?? `the only current copy fails; the guest waits until it answers again`,
    };
  if (onMirror && disk.withoutStopPolicy !== null)
    return { state: 'failed-over', reason: trouble ?? rebuildNeedsStart(o.record.name) };
  if (onMirror) {
    return { state: record.intent.kind === 'rebuild' ? 'rebuilding' : 'failed-over', reason: trouble };
  }
  if (!record.primary.current) {
    return {
      state: 'broken',
      reason: `the domain runs from a stale copy; the current one is ${imageName(record.mirror.image)}: virsh destroy it, then virt-cdp start`,
    };
  }
  if (runsFromOther(o, disk)) {
    return {
      state: 'waiting',
      reason: `the domain runs from an image that is not '${imageName(record.primary.image)}': virt-cdp unprotect it, then protect it again`,
    };
  }
  if (record.instance !== o.instance && o.run === 'hands-off') {
    return {
      state: 'waiting',
      reason: `the domain is paused, and not by us: virsh domstate --reason ${o.record.name}`,
    };
  }
  const view = onPrimaryAlone(disk, trouble);
  if (disk.primaryGone === null) return view;
  const advice = `${disk.primaryGone.why}, and there is no current mirror to move to. Don't stop the guest: put the file back, or copy its data out from inside`;
  return { ...view, reason: view.reason === null ? advice : `${advice}; ${view.reason}` };
}

/** A guest that runs has a disk whose state is worse than the one that is shown; a planned record does not know that, and would undo it. */
export function isWorseThanShown(o: Observation, steps: Step[], troubleOf: (dev: string) => string | null): boolean {
  return (
    o.run === 'running' &&
    !steps.some(({ step }) => step === 'record') &&
    o.disks.some((disk) => {
      const { state } = stateOf(o, disk, troubleOf(disk.record.dev));
      return state !== disk.record.state && worst([state, disk.record.state]) === state;
    })
  );
}

function onPrimaryAlone(disk: DiskObservation, trouble: string | null): StateView {
  const { graph, record } = disk;
  if (graph === null) return { state: 'waiting', reason: null };
  if (record.intent.kind === 'hold') return { state: 'held', reason: null };
  if (disk.obstacle !== null) return { state: 'waiting', reason: disk.obstacle };
  if (graph.otherJob !== null)
    return { state: 'waiting', reason: `the block job ${graph.otherJob.device} runs on this disk` };
  if (graph.syncJob !== null || (graph.mirrorOpen && disk.health.mirror.is !== 'failed'))
    return { state: 'syncing', reason: trouble ?? whyEverything(record) };
  return { state: record.exposedSince === null ? 'waiting' : 'exposed', reason: trouble };
}

function whyEverything({ track }: DiskRecord): string | null {
  return track?.base === 'copying' && track.why !== undefined ? `everything is copied: ${track.why}` : null;
}

/** Whether the disk, as it runs, can ever have the two-copy writer under it: nothing but another start would change that. */
export function canBeArmed(o: Observation, disk: DiskObservation): boolean {
  return disk.graph !== null && disk.obstacle === null && !runsFromOther(o, disk);
}

/** In what way a domain is protected, whenever it is. */
export interface Standing {
  engine: Engine;
  guarantee: Guarantee;
}

/** The worst of all disks'. Of a domain that runs, and was not looked at yet, nothing is promised. */
export function standingOf(record: DomainRecord, running: boolean, last: Observation | null): Standing {
  const engines = last === null ? record.disks.map(({ engine }) => engine) : last.disks.map(({ engine }) => engine);
  const engine = engines.includes('mirror') ? 'mirror' : 'quorum';
  const canBe = running ? last?.disks.every((disk) => canBeArmed(last, disk)) === true : true;
  return { engine, guarantee: !canBe ? 'none' : engine === 'mirror' ? 'relaxed' : 'strict-ack' };
}

/** In a QEMU that the record does not know, an image of which the recorded primary is no part: not the disk that was protected. */
function runsFromOther(o: Observation, { graph, record, liveImage }: DiskObservation): boolean {
  if (graph?.layout !== 'primary' || graph.primary === null || liveImage === null) return false;
  if (!record.primary.current || record.instance === o.instance) return false;
  const ours = [record.primary.image, record.mirror.image];
  return (
    !ours.some((image) => sameStorage(liveImage, image)) &&
    !graph.primary.images.includes(imageName(record.primary.image))
  );
}

/** A look that leaves a disk parked leaves its guest waiting. */
function parkedState(o: Observation, record: DiskRecord, trouble: string | null): StateView {
  const also = trouble === null ? '' : `; ${trouble}`;
  return o.record.policy === 'strict' && record.exposedSince !== null
    ? { state: 'waiting', reason: `policy strict: the guest is paused until both copies are current again${also}` }
    : { state: 'broken', reason: `the guest is paused until a current copy answers${also}` };
}

export function diskStatus(disk: DiskObservation, memory: DiskMemory): DiskStatus {
  const { record, graph } = disk;
  const source = record.primary.current ? 'primary' : 'mirror';
  const bitmaps = record.track === null ? [] : [passBitmap(record.track.bitmap), record.track.bitmap];
  const tracked = bitmaps.flatMap(
    (bitmap) => graph?.tracking.find(({ on, name }) => on === source && name === bitmap) ?? [],
  )[0];
  return {
    ...recordedStatus(record, memory),
    runningOn: runningOn(disk),
    exposedBytes: record.exposedSince === null ? null : (tracked?.dirtyBytes ?? null),
    job: memory.verification === null ? jobOf(disk) : { kind: 'verify', ...memory.verification.progress },
  };
}

/** What can be said of a disk without a look at QEMU: it does not run, or can't be asked now. */
export function recordedStatus(record: DiskRecord, memory: DiskMemory): DiskStatus {
  return {
    dev: record.dev,
    state: record.state,
    since: record.since,
    reason: record.reason ?? record.contested,
    primary: copyStatus(record, 'primary', memory),
    mirror: copyStatus(record, 'mirror', memory),
    runningOn: 'none',
    exposedSince: record.exposedSince,
    exposedBytes: null,
    job: null,
  };
}

/**
 * A disk of which nobody knows how it is now is never called better than `waiting`, whatever it was when it was last seen. `why`: what
 * keeps anybody from looking; null while what was seen is acted on.
 */
export function unseenStatus(record: DiskRecord, memory: DiskMemory, why: string | null): DiskStatus {
  const last = recordedStatus(record, memory);
  const reason = why === null ? null : `${why}; it was last seen ${last.state}`;
  return { ...last, state: worst([last.state, 'waiting']), reason };
}

/** What else there is to say of a disk, after why its state is not better. */
export function withRemark(status: DiskStatus, remark: string | undefined): DiskStatus {
  if (remark === undefined) return status;
  return { ...status, reason: status.reason === null ? remark : `${status.reason}; ${remark}` };
}

/** The record of a domain that is gone is kept: somebody may define it again, and its stale copies must not be started. */
export function goneRemark({ name, uuid }: DomainRecord): string {
  return `libvirt knows the domain no more. Define it again under its UUID ${uuid}, or virt-cdp unprotect ${name} to forget it`;
}

export function domainStatus(
  record: DomainRecord,
  running: boolean,
  disks: DiskStatus[],
  { engine, guarantee }: Standing,
): DomainStatus {
  return {
    domain: record.name,
    uuid: record.uuid,
    running,
    state: worst(disks.map(({ state }) => state)),
    policy: record.policy,
    engine,
    guarantee,
    disks,
  };
}

export function worst(states: DiskState[]): DiskState {
  return states.reduce<DiskState>((a, b) => (diskStates.indexOf(b) > diskStates.indexOf(a) ? b : a), 'stopped');
}

function copyStatus(record: DiskRecord, side: Side, memory: DiskMemory): CopyStatus {
  const { image, current, consistentAsOf, reachable } = record[side];
  return {
    source: imageName(image),
    current,
    reachable: memory.reachable[side] ?? reachable,
    consistentAsOf,
    ...(!current && consistentAsOf === null && { mixture: true as const }),
  };
}

function runningOn({ graph, record, liveImage }: DiskObservation): DiskStatus['runningOn'] {
  switch (graph?.layout) {
    case 'pair':
      return 'both';
    case 'mirror':
    case 'layered':
      return 'mirror';
    case 'primary':
      return liveImage !== null && sameStorage(liveImage, record.mirror.image) ? 'mirror' : 'primary';
    case 'parked':
    case undefined:
      return 'none';
  }
}

function jobOf({ graph, record }: DiskObservation): JobStatus | null {
  const job = graph?.syncJob ?? (record.intent.kind === 'rebuild' ? graph?.otherJob : null);
  if (job == null) return null;
  const syncKind = record.track?.base === 'copying' ? 'full-sync' : 'delta-sync';
  const kind = record.intent.kind === 'rebuild' ? 'rebuild' : syncKind;
  return { kind, done: job.offset, total: job.len };
}
