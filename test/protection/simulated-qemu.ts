import assert from 'node:assert/strict';

/** A QEMU as far as block-graph surgery can tell: nodes, bitmaps, jobs, devices, and storage that fails. */

export const blockCount = 4;

/** One block is so large that two of them are too much for the last delta. */
export const blockBytes = 1024 * 1024;

/** QEMU or libvirt refuses what the planner must never ask for. */
export class Refused extends Error {}

/** Storage failed: the ordinary trouble that the planner must get over. */
export class Failed extends Error {}

/** What a disk's copy holds: which version of each block, and what a crash of its server would take away. */
export class Copy {
  readonly name: string;
  readonly #blocks = new Map<number, number>();
  #writes = 0;
  #keptWrites = 0;
  readonly #unflushed = new Map<number, number>();
  /** Every I/O fails until it is healed. */
  failing = false;
  /** The next I/O of the guest fails, once: the server lost what was not flushed, and says so. */
  failsOnce = false;
  /** It lost acknowledged writes, and the record can't know yet. */
  lostUnseen = false;
  /** Nobody can know how QEMU closed it: somebody wrote to it since, its host lost power, or no agent came to seal it. */
  disturbed = false;
  /** The bitmaps that its image keeps; while QEMU has it open, whatever is there is not to be trusted. */
  readonly bitmaps = new Map<string, Set<number>>();

  constructor(name: string) {
    this.name = name;
  }

  /** Changes with each write, as a file's time does. */
  get fingerprint(): string {
    return `${this.#writes}`;
  }

  /** The file's time is durable from now on; its content is when it is flushed. */
  keepTime(): void {
    this.#keptWrites = this.#writes;
  }

  /** The host that has the file lost power. */
  losePower(): void {
    this.loseUnflushed();
    this.#writes = this.#keptWrites;
    this.disturbed = true;
  }

  /** Somebody writes to it who should not. */
  spoil(): void {
    for (let block = 0; block < blockCount; block++) this.write(block, -1);
    this.flush();
    this.keepTime();
    this.disturbed = true;
  }

  content(): number[] {
    return Array.from({ length: blockCount }, (_, block) => this.read(block));
  }

  read(block: number): number {
    return this.#blocks.get(block) ?? 0;
  }

  write(block: number, version: number): boolean {
    if (this.#fails()) return false;
    if (!this.#unflushed.has(block)) this.#unflushed.set(block, this.read(block));
    this.#blocks.set(block, version);
    this.#writes += 1;
    return true;
  }

  flush(): boolean {
    if (this.#fails()) return false;
    this.#unflushed.clear();
    return true;
  }

  loseUnflushed(): void {
    for (const [block, version] of this.#unflushed) this.#blocks.set(block, version);
    this.#unflushed.clear();
  }

  holds(acknowledged: Map<number, number>): boolean {
    return [...acknowledged].every(([block, version]) => this.read(block) >= version);
  }

  /** Even after a power cut. */
  durablyHolds(acknowledged: Map<number, number>): boolean {
    return [...acknowledged].every(([block, version]) => (this.#unflushed.get(block) ?? this.read(block)) >= version);
  }

  #fails(): boolean {
    const once = this.failsOnce;
    this.failsOnce = false;
    return once || this.failing;
  }
}

interface Node {
  kind: 'image' | 'storage' | 'layer' | 'quorum' | 'filter' | 'park' | 'null';
  below: string[];
  copy: Copy | null;
  /** Its connection is gone, which the next request finds out, and the one after that makes another. */
  broken: boolean;
  /** Its connection is not the first. */
  reconnected: boolean;
  /** Something was written since the last flush: only then a flush asks the storage. */
  dirty: boolean;
  bitmaps: Map<string, Set<number>>;
  /** Those that the image keeps when it is closed. */
  persistent: Set<string>;
}

export interface Job {
  id: string;
  type: 'mirror' | 'backup';
  /** The node it copies from, and its filter over that. */
  device: string;
  filter: string;
  to: string;
  bitmap: string | null;
  todo: Set<number>;
  written: Set<number>;
  ready: boolean;
  /** A write-blocking mirror: it writes to its target what is written to its device; null if it does not, else whether that worked so far. */
  blocking: 'in sync' | 'failed' | null;
  /** It stays when it has ended, until it is dismissed. */
  stays: boolean;
  ended: 'well' | 'badly' | null;
}

export function devOfJob(id: string): string {
  return /vd[a-z]/.exec(id)?.[0] ?? '';
}

export interface Device {
  root: string;
  ioStatus: 'ok' | 'failed';
  /** Under which node its I/O failed since the guest last ran. */
  failedOn: object | null;
  /** The planner knew of that failure when it last looked. */
  failureSeen: boolean;
}

/** Of two disks, the second has a LUN for its mirror: libiscsi makes another connection by itself, and no request fails. */
export const isLun = ({ name }: Copy): boolean => name === '/mirror/vdb';

/** Of two disks, the second is served by an I/O thread. */
export const hasIoThread = (dev: string): boolean => dev === 'vdb';

export class SimulatedQemu {
  readonly nodes = new Map<string, Node>();
  readonly jobs = new Map<string, Job>();
  readonly devices = new Map<string, Device>();
  /** The disks whose copies are being compared. */
  readonly instants = new Set<string>();
  running = true;
  /** One of the copies under a pair failed an I/O. */
  onBadChild: (node: string) => void = () => undefined;
  onJobEnd: (job: Job, end: 'completed' | 'target-failed' | 'source-failed' | 'cancelled') => void = () => undefined;

  node(name: string): Node {
    const node = this.nodes.get(name);
    if (node === undefined) throw new Refused(`there is no node ${name}`);
    return node;
  }

  add(
    name: string,
    kind: Node['kind'],
    { below = [], copy = null }: { below?: string[]; copy?: Copy | null } = {},
  ): void {
    if (this.nodes.has(name)) throw new Refused(`the node ${name} exists`);
    for (const child of below) {
      this.node(child);
      if (this.parents(child).length > 0) throw new Refused(`${child} is in use by ${this.parents(child).join()}`);
    }
    if (kind === 'image' && [...this.nodes.values()].some((node) => node.copy === copy))
      throw new Refused(`no write lock on ${copy?.name ?? ''}`);
    if (kind === 'image' && copy?.failing === true) throw new Failed(`${copy.name} can't be opened`);
    const kept = kind === 'image' ? [...(copy?.bitmaps ?? [])] : [];
    copy?.bitmaps.clear();
    if (copy !== null) copy.disturbed = false;
    this.nodes.set(name, {
      kind,
      below,
      copy,
      broken: false,
      reconnected: false,
      dirty: false,
      bitmaps: new Map(kept),
      persistent: new Set(kept.map(([bitmap]) => bitmap)),
    });
  }

  delete(name: string): void {
    const node = this.nodes.get(name);
    if (node === undefined) return;
    if (this.parents(name).length > 0) throw new Refused(`${name} is in use by ${this.parents(name).join()}`);
    close(node);
    this.nodes.delete(name);
  }

  /** Its node of this copy has another connection than at first, or none. */
  hasLost(copy: Copy): boolean {
    return [...this.nodes.values()].some((node) => node.copy === copy && (node.broken || node.reconnected));
  }

  /** The server of this copy goes away, and comes back or not. */
  loseConnection(copy: Copy): void {
    for (const node of this.nodes.values()) {
      if (node.copy !== copy) continue;
      node.broken = !isLun(copy);
      node.reconnected ||= isLun(copy);
    }
  }

  /** As QEMU's NBD client does it (QEMU, block/nbd.c: nbd_co_send_request). */
  #reaches(name: string): boolean {
    const node = this.node(name);
    const { broken } = node;
    node.reconnected ||= broken;
    node.broken = false;
    return !broken;
  }

  /** It ends in order. */
  close(): void {
    this.nodes.forEach(close);
  }

  /** Nodes, devices and jobs that use a node. */
  parents(name: string): string[] {
    return [
      ...[...this.nodes].flatMap(([parent, { below }]) => (below.includes(name) ? [parent] : [])),
      ...[...this.devices].flatMap(([dev, { root }]) => (root === name ? [`device ${dev}`] : [])),
      ...[...this.jobs.values()].flatMap(({ id, to, ended }) => (to === name && ended === null ? [`job ${id}`] : [])),
    ];
  }

  /** As graph/surgery.ts does it: a running domain is stopped first, and a node that the device has is left alone. */
  setRoot(dev: string, from: string, name: string, stop: () => void): void {
    assert.ok(!this.instants.has(dev), `a surgery on ${dev} during a verify`);
    if (this.running) stop();
    const device = this.device(dev);
    if (device.root === name) return;
    if (device.root !== from) throw new Refused(`${dev} is on ${device.root}, not on ${from}`);
    this.node(name);
    if (this.parents(name).length > 0) throw new Refused(`${name} is in use by ${this.parents(name).join()}`);
    device.root = name;
  }

  device(dev: string): Device {
    const device = this.devices.get(dev);
    if (device === undefined) throw new Refused(`there is no device ${dev}`);
    return device;
  }

  addBitmap(
    name: string,
    bitmap: string,
    blocks: Iterable<number>,
    { isKept = false }: { isKept?: boolean } = {},
  ): void {
    const { bitmaps, persistent } = this.node(name);
    if (bitmaps.has(bitmap)) throw new Refused(`the bitmap ${bitmap} exists`);
    bitmaps.set(bitmap, new Set(blocks));
    if (isKept) persistent.add(bitmap);
  }

  bitmap(name: string, bitmap: string): Set<number> {
    const found = this.node(name).bitmaps.get(bitmap);
    if (found === undefined) throw new Refused(`there is no bitmap ${bitmap} on ${name}`);
    return found;
  }

  removeBitmap(name: string, bitmap: string): void {
    this.bitmap(name, bitmap);
    if ([...this.jobs.values()].some((job) => job.device === name && job.bitmap === bitmap))
      throw new Refused(`the bitmap ${bitmap} is busy`);
    this.node(name).bitmaps.delete(bitmap);
    this.node(name).persistent.delete(bitmap);
  }

  /** Whether the guest's write reached all that it must reach. */
  write(name: string, block: number, version: number): boolean {
    const { kind, below, copy, bitmaps } = this.node(name);
    for (const bitmap of bitmaps.values()) bitmap.add(block);
    switch (kind) {
      case 'image':
        this.node(name).dirty = true;
        return this.#reaches(name) && copy !== null && copy.write(block, version);
      case 'quorum':
        return this.#onAll(below, (child) => this.write(child, block, version));
      case 'filter':
        return this.#writeUnderJob(name, block, version);
      case 'layer':
        return below.every((child) => this.write(child, block, version));
      case 'storage':
      case 'park':
      case 'null':
        return false;
    }
  }

  flush(name: string): boolean {
    const { kind, below, copy } = this.node(name);
    if (kind === 'image') {
      const node = this.node(name);
      if (node.dirty) node.dirty = !this.#reaches(name) || copy?.flush() !== true;
      return !node.dirty;
    }
    if (kind === 'quorum') return this.#onAll(below, (child) => this.flush(child));
    return kind !== 'park' && below.every((child) => this.flush(child));
  }

  /** The copies that a device's I/O reaches. */
  copiesUnder(name: string): Copy[] {
    const { copy, below } = this.node(name);
    const job = [...this.jobs.values()].find(
      ({ filter, blocking, ready }) => filter === name && blocking === 'in sync' && ready,
    );
    return copy !== null
      ? [copy]
      : [...below, ...(job === undefined ? [] : [job.to])].flatMap((child) => this.copiesUnder(child));
  }

  startJob(
    job: Omit<Job, 'filter' | 'written' | 'ready' | 'blocking' | 'stays' | 'ended'>,
    filter: string,
    { stays = false, blocking = false }: { stays?: boolean; blocking?: boolean } = {},
  ): void {
    if (this.jobs.has(job.id)) throw new Refused(`the job ${job.id} exists`);
    for (const name of [job.device, job.to]) this.node(name);
    if (this.parents(job.to).length > 0) throw new Refused(`${job.to} is in use by ${this.parents(job.to).join()}`);
    if (job.device === job.to) throw new Refused('a job from a node onto itself');
    const over = [...this.nodes.values()].filter(({ below }) => below.includes(job.device));
    for (const node of over) node.below = node.below.map((child) => (child === job.device ? filter : child));
    for (const device of this.devices.values()) if (device.root === job.device) device.root = filter;
    this.nodes.set(filter, {
      kind: 'filter',
      below: [job.device],
      copy: null,
      broken: false,
      reconnected: false,
      dirty: false,
      bitmaps: new Map(),
      persistent: new Set(),
    });
    this.jobs.set(job.id, {
      ...job,
      filter,
      written: new Set(),
      ready: blocking && job.todo.size === 0,
      blocking: blocking ? 'in sync' : null,
      stays,
      ended: null,
    });
  }

  /** Copies one block, or finds that there is nothing left to copy. */
  progress(job: Job): void {
    if (job.ended !== null || job.blocking === 'failed') return;
    const [block] = job.todo;
    if (block !== undefined) {
      if (this.#copyBlock(job, block)) job.todo.delete(block);
      return;
    }
    if (job.type === 'mirror') {
      if (job.ready) return;
      if (this.flush(job.to)) job.ready = true;
      else this.endJob(job, 'target-failed');
      return;
    }
    const { device, bitmap, written } = job;
    if (bitmap !== null) this.node(device).bitmaps.set(bitmap, written);
    this.endJob(job, 'completed');
  }

  endJob(job: Job, end: Parameters<SimulatedQemu['onJobEnd']>[1]): void {
    if (job.blocking !== null && end !== 'cancelled' && end !== 'completed') {
      job.blocking = 'failed';
      this.onJobEnd(job, end);
      return;
    }
    if (job.stays) job.ended = end === 'completed' ? 'well' : 'badly';
    else this.jobs.delete(job.id);
    for (const node of this.nodes.values())
      node.below = node.below.map((child) => (child === job.filter ? job.device : child));
    for (const device of this.devices.values()) if (device.root === job.filter) device.root = job.device;
    this.nodes.delete(job.filter);
    this.onJobEnd(job, end);
  }

  #copyBlock(job: Job, block: number): boolean {
    const [source] = this.copiesUnder(job.device);
    if (source === undefined || source.failing || this.#broken(job.device)) {
      this.endJob(job, 'source-failed');
      return false;
    }
    if (this.write(job.to, block, source.read(block))) return true;
    this.endJob(job, 'target-failed');
    return false;
  }

  #broken(name: string): boolean {
    const { broken, below } = this.node(name);
    return broken || below.some((child) => this.#broken(child));
  }

  /** A backup copies a block before the guest overwrites it, and fails the guest's write if it can't; a mirror copies it later. */
  #writeUnderJob(filter: string, block: number, version: number): boolean {
    const job = [...this.jobs.values()].find((one) => one.filter === filter && one.ended === null);
    if (job === undefined) throw new Error(`the filter ${filter} has no job`);
    if (job.blocking !== null) return this.#writeToBoth(job, block, version);
    if (job.type === 'backup' && job.todo.has(block)) {
      if (!this.#copyBlock(job, block)) return false;
      job.todo.delete(block);
    }
    job.written.add(block);
    if (job.type === 'mirror') job.todo.add(block);
    return this.write(job.device, block, version);
  }

  /** The guest is told what became of the primary's part alone. */
  #writeToBoth(job: Job, block: number, version: number): boolean {
    if (!this.write(job.device, block, version)) {
      this.onBadChild(job.device);
      return false;
    }
    if (this.write(job.to, block, version)) return true;
    if (!job.ready) {
      this.endJob(job, 'target-failed');
      return true;
    }
    job.blocking = 'failed';
    this.onBadChild(job.to);
    const [missing] = this.copiesUnder(job.to);
    if (missing !== undefined) missing.lostUnseen = true;
    return true;
  }

  #onAll(children: string[], io: (child: string) => boolean): boolean {
    const bad = children.filter((child) => !io(child));
    for (const child of bad) this.onBadChild(child);
    return bad.length === 0;
  }
}

/** What was written is flushed, as far as that goes (QEMU, block.c: bdrv_close), and what the image keeps is kept if it can be written. */
function close({ dirty, broken, copy, bitmaps, persistent }: Node): void {
  if (dirty && !broken) copy?.flush();
  if (copy === null || broken || copy.failing) return;
  for (const name of persistent) copy.bitmaps.set(name, new Set(bitmaps.get(name)));
}
