import type { Policy } from '../../src/domain/declaration.ts';
import { diskNames } from '../../src/graph/names.ts';
import type { Engine } from '../../src/graph/engine.ts';
import type { Side } from '../../src/protection/model.ts';
import type { DiskObservation, Observation } from '../../src/protection/observation.ts';
import { withDisk } from '../../src/protection/planner/plan.ts';
import {
  endedUnseen,
  isFirstStart,
  sinceStart,
  withSeal,
  type DiskRecord,
  type DomainRecord,
} from '../../src/protection/record.ts';
import { imageName, sameStorage, type Image } from '../../src/storage/image.ts';
import { epochsOf } from './simulated-epochs.ts';
import { areCurrent, Untold } from './simulated-events.ts';
import { newGuest, type Guest } from './simulated-guest.ts';
import { SimulatedMemory } from './simulated-memory.ts';
import { Copy, devOfJob, Failed, hasIoThread, isLun, Refused, SimulatedQemu, type Job } from './simulated-qemu.ts';
import { firstRecord } from './simulated-record.ts';
import { graphOf, orphansOf, runOf } from './simulated-view.ts';

/** One domain on one host: its QEMU, libvirt's XML, the durable record, the guest, and the storage of all copies. */
export class SimulatedDomain {
  readonly #engine: Engine;
  /** The disks without the stop policy, until the next start. */
  #told: string[] = [];
  readonly copies = new Map<string, Copy>();
  readonly guests = new Map<string, Guest>();
  readonly live = new Map<string, { image: Image; index: number }>();
  /** libvirt's definition, and all those that a power cut may bring back. */
  persistent: ReadonlyMap<string, Image>;
  definitions: ReadonlyMap<string, Image>[];
  readonly agedEpochs = new Set<string>();
  /** How things were when QEMU last ended, by disk; `asOf` is what a mirror that was current then is called since. */
  readonly atEnd = new Map<string, { asOf: string | null; acknowledged: Map<number, number>; lastTried: number }>();
  /** The record as the agent knows it, or with the agent down as its hook does. */
  record: DomainRecord;
  /** What outlives a power cut. */
  readonly kept: { record: DomainRecord; start: string | null };
  qemu: SimulatedQemu | null = null;
  paused: 'user' | 'unknown' | 'io-error' | null = null;
  marked = false;
  /** It is being saved or migrated. */
  migrating = false;
  /** Changes of the persistent XML fail. */
  xmlFails = false;
  /** Disks of which the last change failed. */
  readonly xmlFailed = new Set<string>();
  /** Null while the agent is down. */
  memory: Map<string, SimulatedMemory> | null = new Map();
  /** QEMU's events are not heard. */
  deaf = false;
  readonly untold = new Untold();
  #nowMs = Date.parse('2026-01-01T00:00:00Z');
  #version = 0;
  #sources = 0;
  #starts = 0;

  constructor(policy: Policy, devs: string[], engine: Engine = 'quorum', told: string[] = []) {
    this.#engine = engine;
    const { record, defined } = firstRecord(policy, devs);
    for (const dev of devs) this.guests.set(dev, newGuest());
    this.record = record;
    this.persistent = defined;
    this.definitions = [defined];
    this.kept = { record: this.record, start: null };
    this.boot();
    this.#told = told;
  }

  /** The guest is told of a disk's I/O errors instead of being stopped. */
  isTold(dev: string): boolean {
    return this.#told.includes(dev);
  }

  engineOf(dev: string): Engine {
    return this.isTold(dev) ? 'mirror' : this.#engine;
  }

  now(): string {
    return new Date(++this.#nowMs).toISOString();
  }

  copyOf(image: Image): Copy {
    const name = imageName(image);
    const known = this.copies.get(name);
    if (known !== undefined) return known;
    const copy = new Copy(name);
    this.copies.set(name, copy);
    return copy;
  }

  memoryOf(dev: string): SimulatedMemory {
    const memory = this.memory ?? new Map<string, SimulatedMemory>();
    const known = memory.get(dev) ?? new SimulatedMemory();
    memory.set(dev, known);
    return known;
  }

  /** How many copies are known to have failed. */
  failures(): number {
    return this.record.disks
      .flatMap(({ dev }) => Object.values(this.memoryOf(dev).health))
      .filter(({ is }) => is === 'failed').length;
  }

  diskOf(dev: string): DiskRecord | undefined {
    return this.record.disks.find((disk) => disk.dev === dev);
  }

  /** QEMU begins to run the domain as it is defined; an image that is gone lets nothing start. The hook has marked the start. */
  boot(): boolean {
    if ([...this.persistent.values()].some((image) => this.copyOf(image).failing)) return false;
    this.#starts += 1;
    this.#told = [];
    this.memory?.clear();
    if (this.memory !== null && isFirstStart(this.record, this.kept.start))
      for (const { dev, atStop } of this.record.disks) this.memoryOf(dev).atStop = atStop;
    const before = this.record;
    this.record = sinceStart(this.record, this.kept.start);
    for (const { dev, mirror } of before.disks) {
      const end = this.atEnd.get(dev);
      if (end !== undefined && mirror.current) end.asOf = this.diskOf(dev)?.mirror.consistentAsOf ?? null;
    }
    const qemu = new SimulatedQemu();
    qemu.onBadChild = (node) => this.#badChild(node);
    qemu.onJobEnd = (job, end) => this.#jobEnded(job, end);
    for (const guest of this.guests.values()) guest.wrote = false;
    for (const [dev, image] of this.persistent) {
      const names = this.nextLibvirtNames(dev, image);
      this.openImage(qemu, image, names);
      qemu.devices.set(dev, { root: names[0], ioStatus: 'ok', failedOn: null, failureSeen: false });
    }
    this.qemu = qemu;
    this.paused = null;
    this.marked = false;
    return true;
  }

  /** The guest flushes and shuts down; what is durable says whether its copies are identical. */
  shutDown(): void {
    for (const dev of this.guests.keys()) this.guestFlushes(dev);
    if (this.runs()) this.stopQemu({ clean: true });
  }

  /** QEMU ends, and the agent, if there is one, sees it. */
  stopQemu({ clean }: { clean: boolean }): void {
    const heard = this.memory !== null && !this.deaf;
    const pairs = heard
      ? this.observe().disks.filter(
          ({ graph, health, record }) =>
            areCurrent(record) &&
            graph?.layout === 'pair' &&
            graph.pair?.inSync === true &&
            Object.values(health).every(({ is }) => is !== 'failed'),
        )
      : [];
    const { qemu } = this;
    const opened = this.record.disks.filter(({ dev }) => qemu?.nodes.has(diskNames(dev).mirror));
    if (clean) qemu?.close();
    this.endQemu(pairs.map(({ record }) => record.dev));
    for (const { record } of pairs) {
      const atStop = {
        clean: clean && this.engineOf(record.dev) === 'quorum',
        primary: this.copyOf(record.primary.image).fingerprint,
      };
      const stopped = withDisk(this.record, { ...record, state: 'stopped', since: this.now(), atStop });
      this.save(withSeal(stopped, record.dev, 'mirror', this.copyOf(record.mirror.image).fingerprint));
    }
    for (const { dev, mirror } of opened) {
      const copy = this.copyOf(mirror.image);
      copy.disturbed ||= !heard;
      if (heard && this.diskOf(dev)?.mirror.current === false)
        this.save(withSeal(this.record, dev, 'mirror', copy.fingerprint));
    }
  }

  /** Somebody writes to the primary while the domain does not run; of the mirror nobody can know yet. */
  editPrimary(dev: string, { primary, mirror }: DiskRecord): void {
    const version = ++this.#version;
    const copy = this.copyOf(primary.image);
    copy.write(0, version);
    copy.flush();
    copy.keepTime();
    // qemu-img and its like record in what the image keeps.
    for (const bitmap of copy.bitmaps.values()) bitmap.add(0);
    const { acknowledged, flushed } = this.guests.get(dev) ?? {};
    acknowledged?.set(0, version);
    flushed?.set(0, version);
    if (mirror.current) this.copyOf(mirror.image).lostUnseen = true;
  }

  /** QEMU ends, by whatever; an agent that is up records it. */
  endQemu(seen: string[] = []): void {
    this.#stop();
    for (const copy of this.copies.values()) copy.keepTime();
    if (this.memory === null) return;
    const disks = this.record.disks.map((disk) => ({
      ...(seen.includes(disk.dev) ? disk : endedUnseen(disk)),
      state: 'stopped' as const,
      since: this.now(),
    }));
    this.save({ ...this.record, disks });
  }

  /**
   * The host loses power, and comes back without the agent. What nobody flushed is gone, files' times too, and libvirt's definition is
   * one of those since the last that is sure to be durable.
   */
  losePower(definition = this.definitions.length - 1): void {
    // The guest's flushes have not reached the target of a job.
    const unflushed = this.kept.record.disks.filter(
      ({ dev, engine, primary, mirror }) =>
        mirror.current &&
        engine === 'mirror' &&
        (primary.current || this.qemu?.devices.get(dev)?.root === diskNames(dev).pair),
    );
    this.#stop();
    this.loseAgent();
    this.persistent = this.definitions[definition] ?? this.persistent;
    this.definitions = [this.persistent];
    for (const copy of this.copies.values()) copy.losePower();
    for (const { mirror } of unflushed) this.copyOf(mirror.image).lostUnseen = true;
    for (const [dev, guest] of this.guests) {
      guest.acknowledged = new Map(guest.flushed);
      this.atEnd.delete(dev);
    }
    this.record = sinceStart(this.kept.record, this.kept.start);
  }

  /** The guest is reset: what waited to be tried again never will be. */
  reset(): void {
    for (const [dev, guest] of this.guests) {
      for (const { block } of guest.pending) guest.dropped.add(block);
      guest.pending = [];
      const { health } = this.memoryOf(dev);
      if (this.isTold(dev)) continue;
      if (this.qemu?.nodes.has(diskNames(dev).pair) === true && health.primary.is !== 'failed')
        health.mirror = { is: 'failed', why: 'the guest was reset', noSpace: false };
    }
  }

  /** `virsh detach-disk`; libvirt closes its nodes as far as nobody else uses them. What the guest was not told of is given up. */
  unplug(dev: string): void {
    const { qemu } = this;
    if (qemu === null) return;
    const { root } = qemu.device(dev);
    qemu.devices.delete(dev);
    const { index } = this.live.get(dev) ?? {};
    this.live.delete(dev);
    for (const name of [`libvirt-${index}-format`, `libvirt-${index}-storage`])
      if (root === `libvirt-${index}-format` && qemu.parents(name).length === 0) qemu.delete(name);
    const guest = this.guests.get(dev);
    if (guest !== undefined) guest.pending = [];
  }

  /** `virsh attach-disk` of the same image; an image that is still open can't be. */
  plug(dev: string, image: Image): void {
    const { qemu } = this;
    if (qemu === null || qemu.devices.has(dev)) return;
    const names = this.nextLibvirtNames(dev, image);
    try {
      this.openImage(qemu, image, names);
    } catch (error) {
      this.live.delete(dev);
      if (error instanceof Failed || error instanceof Refused) return;
      throw error;
    }
    qemu.devices.set(dev, { root: names[0], ioStatus: 'ok', failedOn: null, failureSeen: false });
  }

  /** The agent ends; another will know only what is durable. */
  loseAgent(): void {
    this.untold.forget();
    this.memory = null;
    this.deaf = false;
  }

  /** Another agent reads what is durable. */
  startAgent(): void {
    if (this.memory !== null) return;
    this.memory = new Map();
    this.record = sinceStart(this.kept.record, this.kept.start);
    if (this.qemu === null) this.save({ ...this.record, disks: this.record.disks.map(endedUnseen) });
  }

  /** What the agent says of the domain from now on, durably. */
  save(record: DomainRecord): void {
    this.untold.recorded(this.record, record);
    this.record = record;
    this.kept.record = record;
  }

  /** libvirt saves a definition that names another image, without making sure of it. */
  define(dev: string, image: Image): void {
    this.persistent = new Map(this.persistent).set(dev, image);
    const name = (images: ReadonlyMap<string, Image>): string => [...images.values()].map(imageName).join();
    this.definitions = this.definitions
      .filter((other) => name(other) !== name(this.persistent))
      .concat(this.persistent);
  }

  /** libvirt opens another image for a disk, and will name it in the live XML. */
  nextLibvirtNames(dev: string, image: Image): [string, string] {
    const index = ++this.#sources;
    this.live.set(dev, { image, index });
    return [`libvirt-${index}-format`, `libvirt-${index}-storage`];
  }

  openImage(qemu: SimulatedQemu, image: Image, [top = '', storage = '']: string[]): void {
    qemu.add(storage, 'storage');
    try {
      qemu.add(top, 'image', { below: [storage], copy: this.copyOf(image) });
    } catch (error) {
      qemu.delete(storage);
      throw error;
    }
  }

  /** The guest writes; what fails is kept for the resume, and pauses the domain. */
  guestWrites(dev: string, block: number): void {
    if (this.runs()) this.#io(dev, { block, version: ++this.#version });
  }

  guestFlushes(dev: string): void {
    const { qemu } = this;
    const guest = this.guests.get(dev);
    if (qemu?.devices.has(dev) !== true || !this.runs() || guest === undefined) return;
    if (!qemu.flush(qemu.device(dev).root)) {
      if (!this.isTold(dev)) this.#stopForError(dev);
      return;
    }
    guest.flushes += 1;
    for (const [block, version] of guest.acknowledged)
      if (guest.unasked.get(block) !== version) guest.flushed.set(block, version);
  }

  runs(): boolean {
    return this.qemu !== null && this.paused === null;
  }

  /** STOP flushes all nodes, and swallows what comes of it; a quorum reports it all the same. */
  stop(reason: 'user' | 'unknown' | 'io-error'): void {
    if (this.qemu === null || this.paused !== null) return;
    this.paused = reason;
    this.qemu.running = false;
    for (const name of [...this.qemu.devices.values()].map(({ root }) => root)) this.qemu.flush(name);
    for (const { blocking, to } of this.qemu.jobs.values()) if (blocking !== null) this.qemu.flush(to);
  }

  /** Failed I/O is tried again, in order. */
  resume(): void {
    if (this.qemu === null || this.paused === null) return;
    this.paused = null;
    this.qemu.running = true;
    this.memory?.forEach((memory) => (memory.movedOn = false));
    for (const device of this.qemu.devices.values())
      Object.assign(device, { ioStatus: 'ok', failedOn: null, failureSeen: false });
    for (const [dev, guest] of this.guests) {
      const queue = guest.pending;
      guest.pending = [];
      for (const write of queue) this.#io(dev, write);
    }
  }

  observe(): Observation {
    for (const device of this.qemu?.devices.values() ?? []) device.failureSeen = device.failedOn !== null;
    return {
      now: this.now(),
      run: runOf(this.paused, this.marked),
      instance: `qemu-${this.#starts}`,
      surgeryMarked: this.marked,
      migrating: this.migrating,
      leaving: false,
      record: this.record,
      disks: this.record.disks.map((record) => this.#observeDisk(record)),
    };
  }

  jobReport(job: Job, side: Side | null): void {
    const dev = devOfJob(job.id);
    if (this.memory !== null && !this.deaf) this.memoryOf(dev).failed(side);
  }

  #io(dev: string, write: { block: number; version: number }): void {
    const { qemu } = this;
    const guest = this.guests.get(dev);
    if (qemu?.devices.has(dev) !== true || guest === undefined) return;
    guest.wrote = true;
    if (qemu.write(qemu.device(dev).root, write.block, write.version)) {
      guest.acknowledged.set(write.block, write.version);
      return;
    }
    if (this.isTold(dev)) return;
    guest.pending.push(write);
    this.#stopForError(dev);
  }

  #stopForError(dev: string): void {
    if (this.qemu === null) return;
    const device = this.qemu.device(dev);
    device.ioStatus = 'failed';
    device.failedOn = this.qemu.node(device.root);
    this.stop('io-error');
  }

  #stop(): void {
    this.qemu = null;
    this.migrating = false;
    this.live.clear();
    this.memory?.clear();
    for (const [dev, guest] of this.guests) {
      guest.pending = [];
      guest.unasked = new Map(
        [...guest.acknowledged].filter(([block, version]) => guest.flushed.get(block) !== version),
      );
      this.atEnd.set(dev, { asOf: null, acknowledged: new Map(guest.acknowledged), lastTried: this.#version });
    }
  }

  #observeDisk(record: DiskRecord): DiskObservation {
    const { dev } = record;
    const memory = this.memoryOf(dev);
    const graph = this.qemu === null ? null : graphOf(this.qemu, dev, this.live.get(dev)?.index);
    const persistent = this.persistent.get(dev);
    const other = record.primary.current ? record.mirror : record.primary;
    // Where the guest waits the mirror was asked, too, and has another connection if it had lost one (src/protection/connection.ts).
    const reconnected =
      (this.paused === 'io-error' || isLun(this.copyOf(record.mirror.image))) &&
      graph?.pair != null &&
      memory.health.mirror.is !== 'failed' &&
      this.qemu?.hasLost(this.copyOf(record.mirror.image)) === true;
    return {
      record,
      graph,
      orphans: this.qemu === null ? [] : orphansOf(this.qemu, dev, graph),
      ioThread: hasIoThread(dev),
      engine: graph?.pair?.engine ?? this.engineOf(dev),
      withoutStopPolicy: this.isTold(dev) ? 'it lacks the stop policy' : null,
      liveImage: this.live.get(dev)?.image ?? null,
      obstacle: null,
      xmlBehind: persistent !== undefined && sameStorage(persistent, other.image),
      ioFailed: this.paused === 'io-error' && graph !== null && graph.ioStatus !== 'ok' && !memory.movedOn,
      noSpace: false,
      health: {
        ...memory.health,
        ...(reconnected && { mirror: { is: 'failed', why: 'it has another connection', noSpace: false } }),
      },
      primaryGone: null,
      touched: memory.touched,
      atStop: memory.atStop,
      copyFailed: memory.copyFailed,
      hang: null,
      silent: [],
      mayRetry: memory.mayRetry,
      deltaPasses: memory.deltaPasses,
      pace: { bytesPerS: 0, mostBytesPerS: 0 },
      verify: memory.verify,
      epochs: epochsOf(graph, memory, this.agedEpochs, this.guests.get(dev)?.flushes ?? 0),
    };
  }

  #badChild(node: string): void {
    if (this.memory === null || this.deaf) return;
    for (const { dev, mirror } of this.record.disks) {
      if (this.isTold(dev) && !mirror.current) continue;
      if (node === diskNames(dev).mirror)
        this.memoryOf(dev).health.mirror = { is: 'failed', why: 'write: EIO', noSpace: false };
      else if (this.qemu?.nodes.get(diskNames(dev).pair)?.below.includes(node) === true)
        this.memoryOf(dev).health.primary = { is: 'failed', why: 'write: EIO', noSpace: false };
    }
  }

  #jobEnded(job: Job, end: Parameters<SimulatedQemu['onJobEnd']>[1]): void {
    const dev = devOfJob(job.id);
    if (job.id.startsWith('libvirt-copy-')) {
      if (end === 'completed') return;
      for (const name of this.qemu?.nodes.has(job.to) === true ? [job.to, job.to.replace('format', 'storage')] : [])
        this.qemu?.delete(name);
      if (this.memory !== null && !this.deaf) this.memoryOf(dev).copyFailed = "libvirt's copy job failed";
      return;
    }
    const disk = this.diskOf(dev);
    if (end === 'completed') this.memoryOf(dev).deltaPasses += 1;
    else if (end !== 'cancelled')
      this.jobReport(
        job,
        end === 'target-failed' && disk !== undefined ? (disk.primary.current ? 'mirror' : 'primary') : null,
      );
  }
}
