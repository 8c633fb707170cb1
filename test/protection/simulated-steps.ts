import assert from 'node:assert/strict';
import { diskNames, epochName } from '../../src/graph/names.ts';
import type { Side } from '../../src/protection/model.ts';
import { withSeal, withSealsOf } from '../../src/protection/record.ts';
import type { Step, StepArguments, StepName } from '../../src/protection/steps.ts';
import { parseImageUri, sameStorage, type Image } from '../../src/storage/image.ts';
import type { SimulatedDomain } from './simulated-domain.ts';
import {
  blockBytes,
  blockCount,
  Failed,
  hasIoThread,
  Refused,
  type Job,
  type SimulatedQemu,
} from './simulated-qemu.ts';

type Executors = { [Name in StepName]: (domain: SimulatedDomain, args: StepArguments[Name]) => void };

/** Each step as QEMU, libvirt and the agent's own executors would do it. @throws Refused, Failed */
export function executeSimulated(domain: SimulatedDomain, step: Step): void {
  (executors[step.step] as (domain: SimulatedDomain, args: Step) => void)(domain, step);
}

const executors: Executors = {
  cancelMigration: (domain) => {
    domain.migrating = false;
  },
  markSurgery: (domain) => {
    if (domain.marked) throw new Refused('the surgery is marked already');
    domain.marked = true;
  },
  unmarkSurgery: (domain) => {
    assert.notEqual(domain.paused, 'unknown', 'the mark is taken away from a pause that is ours: nobody would end it');
    domain.marked = false;
  },
  pause: (domain) => {
    if (domain.paused !== null) throw new Failed('somebody else paused the guest since the look');
    const known = domain.failures();
    domain.stop('unknown');
    if (domain.failures() > known) throw new Failed('a copy failed to flush when the guest was stopped');
  },
  resume: (domain) => {
    assert.notEqual(domain.paused, 'user', 'the guest is resumed although its user suspended it');
    for (const { dev } of domain.record.disks) {
      if (!qemuOf(domain).devices.has(dev)) continue;
      const { root, failedOn, failureSeen, ioStatus } = qemuOf(domain).device(dev);
      if (ioStatus === 'failed') domain.memoryOf(dev).answerIsUsedUp();
      assert.notEqual(root, diskNames(dev).park, `the guest is resumed with ${dev} on the park`);
      if (root !== diskNames(dev).pair || failedOn !== qemuOf(domain).node(root)) continue;
      assert.ok(!failureSeen, `the guest is resumed on the failed pair of ${dev}`);
      throw new Failed(`the pair of ${dev} failed since the look`);
    }
    domain.resume();
  },
  buildPark: (domain, { dev }) => {
    const { park, parkNull, nothing } = diskNames(dev);
    const qemu = qemuOf(domain);
    qemu.add(nothing, 'null');
    qemu.add(parkNull, 'null');
    qemu.add(park, 'park', { below: [parkNull] });
  },
  removePark: (domain, { dev }) => {
    const { park, parkNull, nothing } = diskNames(dev);
    for (const name of [park, parkNull, nothing]) qemuOf(domain).delete(name);
  },
  park: (domain, { dev, root }) => {
    assert.ok(!domain.isTold(dev), `a guest that is told of errors of ${dev} is put on the park`);
    qemuOf(domain).setRoot(dev, root, diskNames(dev).park, () => domain.stop('unknown'));
  },
  unpark: (domain, { dev, node }) => {
    qemuOf(domain).setRoot(dev, diskNames(dev).park, node, () => domain.stop('unknown'));
    Object.assign(domain.memoryOf(dev), {
      health: { primary: { is: 'unknown' }, mirror: { is: 'unknown' } },
      movedOn: true,
    });
  },
  openMirror: (domain, { dev, image, sealed }) => {
    if (isTouched(domain, dev, 'mirror', image, sealed)) return;
    const { mirror, mirrorStorage } = diskNames(dev);
    domain.openImage(qemuOf(domain), image, [mirror, mirrorStorage]);
    domain.memoryOf(dev).opened('mirror');
  },
  closeMirror: (domain, { dev }) => {
    const { mirror, mirrorStorage } = diskNames(dev);
    for (const name of [mirror, mirrorStorage]) qemuOf(domain).delete(name);
    domain.memoryOf(dev).health.mirror = { is: 'unknown' };
  },
  reviveRelay: () => undefined,
  openPrimary: (domain, { dev, image, names, sealed }) => {
    if (isTouched(domain, dev, 'primary', image, sealed)) return;
    assert.equal(names.length, 2, `${dev} is opened under libvirt's names`);
    domain.openImage(qemuOf(domain), image, names);
    domain.memoryOf(dev).opened('primary');
  },
  seal: (domain, { dev, side, image }) =>
    domain.save(withSeal(domain.record, dev, side, domain.copyOf(image).fingerprint)),
  standIn: () => undefined,
  removeStandIn: () => undefined,
  closePrimary: (domain, { dev, nodes }) => {
    for (const name of nodes) qemuOf(domain).delete(name);
    domain.memoryOf(dev).health.primary = { is: 'unknown' };
  },
  closeOrphans: (domain, { dev, nodes }) => {
    const qemu = qemuOf(domain);
    qemu.instants.delete(dev);
    const job = qemu.jobs.get(diskNames(dev).syncJob);
    if (job !== undefined) qemu.endJob(job, 'cancelled');
    if (qemu.jobs.has(diskNames(dev).pairJob)) endPair(qemu, dev);
    for (const name of nodes) qemu.delete(name);
    domain.memoryOf(dev).atStop = null;
  },
  requireUntouched: (domain, { dev, image, fingerprint }) => {
    domain.memoryOf(dev).atStop = null;
    if (domain.guests.get(dev)?.wrote === true) throw new Failed('the guest has written since the start');
    if (domain.copyOf(image).fingerprint !== fingerprint)
      throw new Failed('the primary was changed while the domain was stopped');
  },
  compose: (domain, { dev, primaryTop, engine }) => {
    const { pair, mirror } = diskNames(dev);
    const qemu = qemuOf(domain);
    if (engine === 'quorum') {
      qemu.add(pair, 'quorum', { below: [primaryTop, mirror] });
      return;
    }
    if (!qemu.flush(mirror)) throw new Failed('the flush of the mirror');
    startPairJob(qemu, dev, primaryTop, new Set());
  },
  composeCopying: (domain, { dev, primaryTop }) => {
    const qemu = qemuOf(domain);
    if (qemu.running) throw new Failed('somebody has resumed the guest');
    assertCurrentSource(domain, dev, primaryTop);
    startPairJob(qemu, dev, primaryTop, allBlocks());
    domain.memoryOf(dev).health = { primary: { is: 'unknown' }, mirror: { is: 'unknown' } };
  },
  promote: (domain, { dev }) => {
    const qemu = qemuOf(domain);
    if (qemu.running) throw new Failed('somebody has resumed the guest');
    const job = jobOf(qemu, diskNames(dev).pairJob);
    if (!job.ready || job.blocking !== 'in sync') throw new Refused(`the job ${job.id} is not in sync`);
    if (!qemu.flush(job.to)) {
      job.blocking = 'failed';
      domain.memoryOf(dev).failed('mirror');
      throw new Failed('the flush of the mirror');
    }
    qemu.endJob(job, 'completed');
    qemu.device(dev).root = job.to;
    Object.assign(domain.memoryOf(dev), {
      health: { primary: { is: 'unknown' }, mirror: { is: 'unknown' } },
      movedOn: true,
    });
  },
  requireConnected: (domain, { dev }) => {
    const copy = qemuOf(domain).node(diskNames(dev).mirror).copy;
    if (copy === null || !qemuOf(domain).hasLost(copy)) return;
    domain.memoryOf(dev).failed('mirror');
    throw new Failed('the mirror has another connection');
  },
  requireInSync: (domain, { dev }) => {
    if (jobOf(qemuOf(domain), diskNames(dev).pairJob).blocking !== 'in sync')
      throw new Failed('the mirror failed meanwhile');
  },
  dropPair: (domain, { dev }) => endPair(qemuOf(domain), dev),
  addEpoch: (domain, { dev }) => qemuOf(domain).addBitmap(diskNames(dev).pair, epochName(Date.parse(domain.now())), []),
  dropEpoch: (domain, { dev, bitmap }) => qemuOf(domain).removeBitmap(diskNames(dev).pair, bitmap),
  track: (domain, { node, bitmap, merged, persistent = false }) => {
    const qemu = qemuOf(domain);
    qemu.addBitmap(
      node,
      bitmap,
      merged.flatMap((from) => [...qemu.bitmap(from.node, from.name)]),
      { isKept: persistent },
    );
  },
  untrack: (domain, { node, bitmap }) => qemuOf(domain).removeBitmap(node, bitmap),
  startFullSync: (domain, { dev, from, to }) => {
    const qemu = qemuOf(domain);
    assertCurrentSource(domain, dev, from);
    const { syncJob } = diskNames(dev);
    qemu.startJob({ id: syncJob, type: 'mirror', device: from, to, bitmap: null, todo: allBlocks() }, syncJob);
  },
  startSnapshotSync: (domain, { dev, from, to }) => {
    const qemu = qemuOf(domain);
    assertCurrentSource(domain, dev, from);
    assert.ok(!domain.isTold(dev), `a job that can fail a write of ${dev}'s guest`);
    const { syncJob } = diskNames(dev);
    qemu.startJob({ id: syncJob, type: 'backup', device: from, to, bitmap: null, todo: allBlocks() }, syncJob, {
      stays: true,
    });
  },
  dismissSync: (domain, { dev }) => {
    const job = jobOf(qemuOf(domain), diskNames(dev).syncJob);
    if (job.ended === null) throw new Refused(`the job ${job.id} runs`);
    qemuOf(domain).jobs.delete(job.id);
  },
  setSpeed: () => undefined,
  endFullSync: (domain, { dev }) => {
    const qemu = qemuOf(domain);
    const job = jobOf(qemu, diskNames(dev).syncJob);
    if (!job.ready) throw new Refused(`the job ${job.id} is not ready`);
    copyRest(qemu, job);
    if (!qemu.flush(job.to)) {
      qemu.endJob(job, 'target-failed');
      throw new Failed('the flush of the target');
    }
    qemu.endJob(job, 'cancelled');
  },
  startDelta: (domain, { dev, from, to, bitmap }) => startDelta(domain, dev, from, to, bitmap),
  finishDelta: (domain, { dev, from, to, bitmap }) => {
    assert.equal(domain.qemu?.device(dev).root, diskNames(dev).park, 'the last delta is made while the disk is parked');
    const qemu = qemuOf(domain);
    const job = startDelta(domain, dev, from, to, bitmap);
    copyRest(qemu, job);
    qemu.progress(job);
  },
  cancelSync: (domain, { dev }) => {
    const qemu = qemuOf(domain);
    const job = jobOf(qemu, diskNames(dev).syncJob);
    if (job.ended === null) qemu.endJob(job, 'cancelled');
    qemu.jobs.delete(job.id);
  },
  flush: (domain, { dev, node }) => {
    qemuOf(domain).node(diskNames(dev).nothing);
    // It is the target of a job for a moment, which QEMU allows nobody else's node to be.
    if (qemuOf(domain).parents(node).length > 0) throw new Refused(`${node} is in use`);
    const copy = qemuOf(domain).node(node).copy;
    const flushed = qemuOf(domain).flush(node);
    if (flushed && !(node === diskNames(dev).mirror && copy !== null && qemuOf(domain).hasLost(copy))) return;
    domain.memoryOf(dev).failed(node === diskNames(dev).mirror ? 'mirror' : 'primary');
    throw new Failed(`the flush of ${node}`);
  },
  probe: (domain, { dev, side, image, node }) => {
    const memory = domain.memoryOf(dev);
    if (domain.copyOf(image).failing || (node !== null && domain.qemu?.hasLost(domain.copyOf(image)) === true))
      memory.failed(side);
    else memory.health[side] = { is: 'answering' };
  },
  suspect: (domain, { dev, side }) => domain.memoryOf(dev).failed(side),
  requireAnswer: (domain, args) => {
    executors.probe(domain, args);
    if (domain.memoryOf(args.dev).health[args.side].is === 'failed') throw new Failed(`an answer of the ${args.side}`);
  },
  takeInstant: (domain, { dev, mirror }) => {
    const qemu = qemuOf(domain);
    assert.equal(
      qemu.device(dev).root,
      diskNames(dev).pair,
      `the copies of ${dev} are compared while it is not on both`,
    );
    qemu.node(mirror);
    qemu.instants.add(dev);
    domain.memoryOf(dev).verify = { is: 'taken' };
  },
  endInstant: (domain, { dev, why }) => {
    if (why !== null) domain.memoryOf(dev).verify = { is: 'none' };
    qemuOf(domain).instants.delete(dev);
  },
  markDiffering: (domain, { dev, epochs, extents }) => {
    domain.memoryOf(dev).verify = { is: 'none' };
    const newest = qemuOf(domain).bitmap(diskNames(dev).pair, [...epochs].sort().at(-1) ?? '');
    for (const { offset } of extents) newest.add(offset / blockBytes);
  },
  buildLayers: (domain, { dev, names }) => {
    let below = diskNames(dev).mirror;
    for (const name of [...names].reverse()) {
      qemuOf(domain).add(name, 'layer', { below: [below] });
      below = name;
    }
  },
  startCopy: (domain, { dev, to, whileStopped }) => {
    if (whileStopped && qemuOf(domain).running) domain.stop('unknown');
    startCopy(domain, dev, to);
  },
  abortCopy: (domain, { dev }) => {
    const qemu = qemuOf(domain);
    qemu.endJob(jobOf(qemu, copyJob(dev)), 'cancelled');
  },
  pivot: (domain, { dev }) => {
    const qemu = qemuOf(domain);
    const job = jobOf(qemu, copyJob(dev));
    if (!job.ready) throw new Refused(`the job ${job.id} is not ready`);
    copyRest(qemu, job);
    // As a mirror job does at its end (QEMU, block/mirror.c: mirror_run).
    qemu.flush(job.to);
    const before = qemu.device(dev).root;
    const old = chain(qemu, job.device);
    qemu.endJob(job, 'completed');
    if (before === job.filter) qemu.device(dev).root = job.to;
    for (const name of old.filter((one) => one.startsWith('libvirt-'))) qemu.delete(name);
    const { image } = domain.live.get(dev) ?? {};
    const to = parseImageUri(qemu.copiesUnder(job.to)[0]?.name ?? '');
    assert.ok(image !== undefined);
    domain.live.set(dev, { image: to, index: Number(/\d+/.exec(job.to)?.[0]) });
    const persistent = domain.persistent.get(dev);
    if (persistent !== undefined && sameStorage(persistent, image)) domain.define(dev, to);
  },
  record: (domain, { record }) => domain.save(withSealsOf(domain.record, record)),
  defineSource: (domain, { dev, image }) => {
    if (domain.xmlFails) {
      domain.xmlFailed.add(dev);
      domain.memoryOf(dev).failed(null);
    } else {
      domain.xmlFailed.delete(dev);
      domain.define(dev, image);
    }
  },
  forget: (domain, { dev }) => {
    domain.definitions = [domain.persistent];
    domain.save({ ...domain.record, disks: domain.record.disks.filter((disk) => disk.dev !== dev) });
  },
  note: (domain, { event, disk }) => domain.untold.told(event, disk),
};

function isTouched(domain: SimulatedDomain, dev: string, side: Side, image: Image, sealed: string | null): boolean {
  if (sealed === null || domain.copyOf(image).fingerprint === sealed) return false;
  assert.ok(domain.copyOf(image).disturbed, `somebody is said to have written to the ${side} of ${dev}`);
  Object.assign(domain.memoryOf(dev), { touched: [side], atStop: null });
  return true;
}

function qemuOf({ qemu }: SimulatedDomain): SimulatedQemu {
  if (qemu === null) throw new Failed('QEMU is gone');
  return qemu;
}

function jobOf(qemu: SimulatedQemu, id: string): Job {
  const job = qemu.jobs.get(id);
  if (job === undefined) throw new Refused(`there is no job ${id}`);
  return job;
}

function startPairJob(qemu: SimulatedQemu, dev: string, primaryTop: string, todo: Set<number>): void {
  const { pair, pairJob: id, mirror: to } = diskNames(dev);
  qemu.startJob({ id, type: 'mirror', device: primaryTop, to, bitmap: null, todo }, pair, { blocking: true });
}

/** A filter goes with its job. */
function endPair(qemu: SimulatedQemu, dev: string): void {
  const { pair, pairJob } = diskNames(dev);
  const job = qemu.jobs.get(pairJob);
  if (job === undefined) qemu.delete(pair);
  else qemu.endJob(job, 'cancelled');
}

export function copyJob(dev: string): string {
  return `libvirt-copy-${dev}`;
}

function allBlocks(): Set<number> {
  return new Set(Array.from({ length: blockCount }, (_, block) => block));
}

function startDelta(domain: SimulatedDomain, dev: string, from: string, to: string, bitmap: string): Job {
  const qemu = qemuOf(domain);
  assertCurrentSource(domain, dev, from);
  assert.ok(!domain.isTold(dev), `a job that can fail a write of ${dev}'s guest`);
  const { syncJob } = diskNames(dev);
  qemu.startJob(
    { id: syncJob, type: 'backup', device: from, to, bitmap, todo: new Set(qemu.bitmap(from, bitmap)) },
    syncJob,
  );
  return jobOf(qemu, syncJob);
}

/** libvirt looks the disk's node up by its own name, and the job needs the device's real root. */
function startCopy(domain: SimulatedDomain, dev: string, to: Image): void {
  const qemu = qemuOf(domain);
  assert.ok(!(hasIoThread(dev) && qemu.running), 'libvirt copies under a guest that may write from an I/O thread');
  const { image, index } = domain.live.get(dev) ?? {};
  const from = `libvirt-${index}-format`;
  if (image === undefined || qemu.device(dev).root !== from) throw new Refused(`${from} is not the root of ${dev}`);
  assertCurrentSource(domain, dev, from);
  try {
    const names = domain.nextLibvirtNames(dev, to);
    domain.live.set(dev, { image, index: Number(index) });
    domain.memoryOf(dev).copyFailed = null;
    domain.openImage(qemu, to, names);
    qemu.startJob(
      { id: copyJob(dev), type: 'mirror', device: from, to: names[0], bitmap: null, todo: allBlocks() },
      `${copyJob(dev)}-filter`,
    );
  } catch (error) {
    domain.memoryOf(dev).copyFailed = 'it could not be started';
    throw error;
  }
}

/** Copies what is left of a job at one stroke. */
function copyRest(qemu: SimulatedQemu, job: Job): void {
  while (job.todo.size > 0) {
    qemu.progress(job);
    if (!qemu.jobs.has(job.id)) throw new Failed(`the job ${job.id}`);
  }
}

function chain(qemu: SimulatedQemu, name: string): string[] {
  return [name, ...qemu.node(name).below.flatMap((child) => chain(qemu, child))];
}

function assertCurrentSource(domain: SimulatedDomain, dev: string, from: string): void {
  const disk = domain.record.disks.find((one) => one.dev === dev);
  const guest = domain.guests.get(dev);
  for (const copy of qemuOf(domain).copiesUnder(from)) {
    const side = disk !== undefined && domain.copyOf(disk.primary.image) === copy ? 'primary' : 'mirror';
    assert.ok(disk?.[side].current, `the stale ${side} of ${dev} is the source of a sync`);
    assert.ok(
      guest !== undefined && copy.holds(guest.acknowledged),
      `${copy.name} lacks acknowledged writes and is the source of a sync`,
    );
  }
}
