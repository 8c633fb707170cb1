import type { Image } from '../../domain/image.ts';
import { diskNames } from '../../graph/names.ts';
import { yank } from '../../graph/yank.ts';
import { kernelWaits } from '../../health/kernel-waits.ts';
import { breakConnections } from '../../health/tcp-connections.ts';
import { qemuPid } from '../../libvirt/pid-file.ts';
import type { Monitor } from '../../qmp/monitor.ts';
import { kindOf } from '../../storage/image.ts';
import type { Side } from '../model.ts';
import type { DiskObservation } from '../observation.ts';
import { isPairByJob } from '../planner/damage.ts';
import type { Protector } from '../protector.ts';
import { awaitedCopies } from './awaited.ts';
import { copiesInUse, spareCopies, syncTarget } from './copies-in-use.ts';
import type { HangWatchParts } from './hang-watch.ts';
import { countersOf, ringsOf } from './progress.ts';
import { judge, type Answer, type Verdict } from './verdict.ts';

/** A copy that answers others is left alone, at first: so many times the patience. */
const rest = 12;

/** A request that takes longer gives reason to ask the storage. */
const slowMs = 2_000;

/** Of the last resort, which costs the guest a reboot: so many times the patience. */
const lastResort = 12;

const resortAgainMs = 5 * 60_000;

/** Of a copy of which nobody wants anything: so many times the patience. */
const unaskedPatience = 3;

interface Seen {
  counters: string;
  used: string | null;
  /** Since when the guest has waited without any request having ended. */
  stuckSinceMs: number | null;
  /** QEMU's threads that have waited in the kernel since then. */
  threads: string[];
  /** How far a sync has got. */
  synced: number | null;
  /** It has not got on since the look before. */
  stalls: boolean;
  /** Since when copies in use have not answered. */
  silentSinceMs: Partial<Record<Side, number>>;
}

interface HungCopy {
  dev: string;
  side: Side;
  image: Image;
}

function backendName({ image: { source } }: HungCopy): string {
  return kindOf(source).backend(source);
}

/** Whether the requests of one running domain's disks get on. */
export class DomainWatch {
  readonly #parts: HangWatchParts;
  readonly #protector: Protector;
  readonly #seen = new Map<string, Seen>();
  #resortAtMs = 0;

  constructor(parts: HangWatchParts, protector: Protector) {
    this.#parts = parts;
    this.#protector = protector;
  }

  /** Answers whether anything may be amiss, as it may of a sync that the guest waits for, so that the next look should be soon. */
  async look(): Promise<boolean> {
    const { live, observation } = this.#protector;
    if (live === null) return false;
    if (live.silentSince !== null) return this.#weighSilence(Date.parse(live.silentSince));
    if (observation === null) return false;
    const disks = observation.disks.filter((disk) => copiesInUse(disk).length > 0);
    this.#hearBackends(disks);
    await this.#see(live.monitor, disks);
    if (disks.some((disk) => this.#stuckMs(disk) > 0) && !(await live.monitor.execute('query-status', {})).running) {
      this.#seen.clear();
      return false;
    }
    for (const disk of disks) await this.#weigh(live.monitor, disk);
    return disks.some(
      (disk) => this.#stuckMs(disk) > 0 || this.#silentCopies(disk).length > 0 || disk.graph?.syncJob != null,
    );
  }

  /** What is known of the storage is known to the planner, which starts nothing that would wait for it. */
  #hearBackends(disks: DiskObservation[]): void {
    for (const disk of disks) {
      const memory = this.#protector.memoryOf(disk.record.dev);
      let changed = false;
      for (const side of ['primary', 'mirror'] as const) {
        const silent = this.#silentCopies(disk).includes(side);
        if (memory.silent[side] === silent) continue;
        memory.silent[side] = silent;
        if (copiesInUse(disk).includes(side)) memory.reachable[side] = !silent;
        changed = true;
      }
      if (changed) this.#protector.wake();
    }
  }

  async #see(monitor: Monitor, disks: DiskObservation[]): Promise<void> {
    const now = Date.now();
    const counters = await countersOf(
      monitor,
      disks.flatMap(({ graph }) => graph?.qdev ?? []),
    );
    for (const disk of disks) {
      const { dev } = disk.record;
      const qdev = disk.graph?.qdev ?? '';
      const before = this.#seen.get(dev);
      const seen: Seen = {
        counters: counters.get(qdev) ?? '',
        used: null,
        stuckSinceMs: null,
        threads: [],
        synced: null,
        stalls: false,
        silentSinceMs: {},
      };
      const job = disk.graph?.syncJob;
      // At its end a mirror job flushes its target, which may take minutes; it has no length before it has begun (block/mirror.c: mirror_run).
      if (job != null && (job.len === 0 || job.offset < job.len)) seen.synced = job.offset;
      seen.stalls = seen.synced !== null && seen.synced === before?.synced;
      for (const side of this.#silentCopies(disk)) seen.silentSinceMs[side] = before?.silentSinceMs[side] ?? now;
      if (before?.counters === seen.counters) {
        const rings = await ringsOf(monitor, qdev);
        seen.used = rings?.used ?? null;
        // Where QEMU can't tell, an idle disk would look the same: then the storage has to be what shows it.
        const waits = rings === null ? this.#silentCopies(disk).length > 0 : rings.inFlight > 0;
        if (waits) {
          const since = before.used === seen.used ? before.stuckSinceMs : null;
          const threads = kernelWaits(this.#protector.live?.pid ?? null);
          seen.stuckSinceMs = since ?? now;
          seen.threads = since === null ? threads : threads.filter((thread) => before.threads.includes(thread));
        }
      }
      this.#seen.set(dev, seen);
    }
  }

  async #weigh(monitor: Monitor, disk: DiskObservation): Promise<void> {
    const { dev } = disk.record;
    const memory = this.#protector.memoryOf(dev);
    if (this.#stuckMs(disk) === 0 && memory.hang !== null) {
      memory.hangs(null);
      this.#protector.wake();
    }
    if (this.#stuckMs(disk) === 0) {
      await this.#leaveSilent(monitor, disk);
      await this.#leaveStalled(monitor, disk);
      return;
    }
    if (this.#stuckMs(disk) < slowMs) return;
    const answers = await this.#askAll(disk);
    await this.#see(monitor, [disk]);
    const verdict = judge(
      {
        stuckMs: this.#stuckMs(disk),
        answers,
        spare: spareCopies(disk),
        target: syncTarget(disk),
        otherJob: disk.graph?.otherJob != null,
      },
      this.#parts.patienceMs(),
    );
    if (verdict === null) return;
    const { leave } = verdict;
    const answersOthers = leave !== null && ['answers', 'keeps QEMU waiting'].includes(answers[leave] ?? '');
    await this.#act(monitor, disk, verdict, { answersOthers });
  }

  /**
   * The guest asks nothing of a copy that does not answer: it is left before somebody has to wait for it. A pause would, by whomever,
   * and QEMU's monitor with it.
   */
  async #leaveSilent(monitor: Monitor, disk: DiskObservation): Promise<void> {
    const { dev, intent } = disk.record;
    const memory = this.#protector.memoryOf(dev);
    const patienceMs = this.#parts.patienceMs();
    for (const side of spareCopies(disk)) {
      const since = this.#seen.get(dev)?.silentSinceMs[side];
      if (since === undefined || memory.health[side].is === 'failed') continue;
      const isAwaited = disk.graph?.syncJob != null || intent.kind !== 'protect';
      if (Date.now() - since < (isAwaited ? patienceMs : unaskedPatience * patienceMs)) continue;
      if (side === 'primary' && !isAwaited) continue;
      const answers = await this.#ask(disk);
      const other = side === 'primary' ? 'mirror' : 'primary';
      if (answers[side] === 'answers' || answers[other] !== 'answers') continue;
      await this.#leaveUnasked(monitor, disk, side, since);
    }
  }

  /**
   * A sync that waits for its target, which answers others, holds up nobody until somebody ends it: then QEMU's monitor would wait, and the
   * guest.
   */
  async #leaveStalled(monitor: Monitor, disk: DiskObservation): Promise<void> {
    const target = syncTarget(disk);
    const { dev } = disk.record;
    if (this.#seen.get(dev)?.stalls !== true || target === null) return;
    const memory = this.#protector.memoryOf(dev);
    const { yanked } = memory;
    if (yanked.primary || yanked.mirror) return;
    const patienceMs = this.#parts.patienceMs();
    const stalledMs = unaskedPatience * patienceMs;
    const { live } = this.#protector;
    const [awaited, other] = await awaitedCopies(disk, {
      pid: live?.pid ?? null,
      stuckMs: stalledMs,
      threads: [],
      yanked,
    });
    if (awaited !== target || other !== undefined) return;
    if (!(await this.#leaveUnasked(monitor, disk, target, Date.now() - stalledMs))) return;
    memory.letRest(target, rest * patienceMs);
  }

  /** While the guest asks nothing of it. */
  async #leaveUnasked(monitor: Monitor, disk: DiskObservation, side: Side, sinceMs: number): Promise<boolean> {
    if (!(await this.#leave(monitor, disk, side))) return false;
    const { dev } = disk.record;
    this.#protector.note('hang', dev, { side, since: new Date(sinceMs).toISOString() });
    this.#protector.memoryOf(dev).learn(side, { is: 'failed', why: 'it does not answer', noSpace: false });
    this.#protector.wake();
    return true;
  }

  async #act(
    monitor: Monitor,
    disk: DiskObservation,
    { side, leave }: Verdict,
    { answersOthers }: { answersOthers: boolean },
  ): Promise<void> {
    const { dev } = disk.record;
    if (this.#lastSeen(dev)?.graph?.layout !== disk.graph?.layout) return;
    const memory = this.#protector.memoryOf(dev);
    const stuckMs = this.#stuckMs(disk);
    const since = new Date(Date.now() - stuckMs).toISOString();
    if (memory.hang === null) this.#protector.note('hang', dev, { side, since });
    if (memory.hang?.side !== side) memory.hangs({ side, since });
    if (leave !== null && (await this.#leave(monitor, disk, leave))) {
      if (answersOthers) memory.letRest(leave, rest * this.#parts.patienceMs());
      return;
    }
    this.#protector.wake();
    if (side !== null && leave === side) await this.#resort(dev, side, stuckMs);
  }

  /**
   * QEMU's monitor does not answer: a look came just when a storage had fallen silent, or somebody's command. The guest has to wait then,
   * too, and no yank can be asked for.
   */
  async #weighSilence(sinceMs: number): Promise<boolean> {
    const hung: HungCopy[] = [];
    for (const { dev, primary, mirror } of this.#protector.record.disks) {
      if (!primary.current || !(mirror.current || this.#hasPairByJob(dev))) continue;
      const [first, second] = await Promise.all([primary, mirror].map(({ image }) => this.#parts.prober.ask(image)));
      if (first === second) continue;
      const [side, { image }] = first === true ? (['mirror', mirror] as const) : (['primary', primary] as const);
      if (side === 'primary' && (this.#isTold(dev) || !mirror.current)) continue;
      hung.push({ dev, side, image });
    }
    for (const backend of new Set(hung.map(backendName))) {
      const alike = hung.filter((copy) => backendName(copy) === backend);
      if (await this.#breakOff(alike)) continue;
      for (const { dev, side } of alike) await this.#resort(dev, side, Date.now() - sinceMs);
    }
    return hung.length > 0;
  }

  /** Its guest waits for a mirror that is not whole yet, or that the record has left already, as long as the job is there. */
  #hasPairByJob(dev: string): boolean {
    const graph = this.#lastSeen(dev)?.graph ?? null;
    return graph !== null && isPairByJob(graph);
  }

  /** Of errors, by the disk; the guest is not paused for them. */
  #isTold(dev: string): boolean {
    const seen = this.#lastSeen(dev);
    return seen !== undefined && seen.withoutStopPolicy !== null;
  }

  #lastSeen(dev: string): DiskObservation | undefined {
    return this.#protector.observation?.disks.find(({ record }) => record.dev === dev);
  }

  /** What a yank does, without QEMU's help, for the copies on one server. Not if QEMU has more connections to it than theirs. */
  async #breakOff(copies: HungCopy[]): Promise<boolean> {
    const { name } = this.#protector.record;
    if (await this.#endRelays(copies)) return true;
    const source = copies[0]?.image.source;
    const pid = qemuPid(name);
    if (pid === null || source?.kind !== 'nbd' || 'socket' in source.server) return false;
    const broken = await breakConnections(pid, source.server, copies.length);
    if (broken) this.#parts.log.info('connections broken', { domain: name, disks: copies.map(({ dev }) => dev) });
    return broken;
  }

  /** The same for mirrors behind relays; false if one of the copies is not. */
  async #endRelays(copies: HungCopy[]): Promise<boolean> {
    const { live } = this.#protector;
    if (live === null || !copies.every(({ dev, side }) => side === 'mirror' && live.relayPid(dev) !== null))
      return false;
    await Promise.all(copies.map(({ dev }) => live.relays.end(live.ref, dev)));
    this.#parts.log.info('relays ended', { domain: live.ref.name, disks: copies.map(({ dev }) => dev) });
    return true;
  }

  async #resort(dev: string, side: Side, stuckMs: number): Promise<void> {
    if (stuckMs < lastResort * this.#parts.patienceMs() || Date.now() < this.#resortAtMs) return;
    this.#resortAtMs = Date.now() + resortAgainMs;
    await this.#parts.helpless(this.#protector, dev, side);
  }

  /**
   * Has QEMU fail what it asked of a copy; then the guest is paused for the error, or the job ends, and the domain's loop takes it from
   * there. After that, the other copy is the only one.
   */
  async #leave(monitor: Monitor, disk: DiskObservation, side: Side): Promise<boolean> {
    const { dev } = disk.record;
    const { yanked } = this.#protector.memoryOf(dev);
    if (yanked.primary || yanked.mirror) return false;
    const { mirrorStorage } = diskNames(dev);
    const nodes = side === 'mirror' ? [mirrorStorage] : (disk.graph?.primary?.chain ?? []);
    if (!(await yank(monitor, nodes))) return false;
    yanked[side] = true;
    this.#parts.log.info('yanked', { domain: this.#protector.record.name, disk: dev, side });
    return true;
  }

  /** Others, and if all answer QEMU. */
  async #askAll(disk: DiskObservation): Promise<Partial<Record<Side, Answer>>> {
    const answers = await this.#ask(disk);
    if (Object.values(answers).some((answer) => answer !== 'answers')) return answers;
    const { dev } = disk.record;
    const awaited = await awaitedCopies(disk, {
      pid: this.#protector.live?.pid ?? null,
      stuckMs: this.#stuckMs(disk),
      threads: this.#seen.get(dev)?.threads ?? [],
      yanked: this.#protector.memoryOf(dev).yanked,
    });
    for (const side of awaited) answers[side] = 'keeps QEMU waiting';
    return answers;
  }

  async #ask(disk: DiskObservation): Promise<Partial<Record<Side, Answer>>> {
    const answers: Partial<Record<Side, Answer>> = {};
    await Promise.all(
      copiesInUse(disk).map(async (side) => {
        const { image } = disk.record[side];
        const answered = await this.#parts.prober.ask(image);
        const silence = this.#parts.backends.hasAnswered(image) ? 'silent' : 'never answered';
        answers[side] = answered ? 'answers' : silence;
      }),
    );
    return answers;
  }

  #silentCopies(disk: DiskObservation): Side[] {
    return copiesInUse(disk).filter((side) => this.#parts.backends.isSilent(disk.record[side].image));
  }

  /** 0 if requests end, or none is under way. */
  #stuckMs({ record: { dev } }: DiskObservation): number {
    const since = this.#seen.get(dev)?.stuckSinceMs ?? null;
    return since === null ? 0 : Math.max(1, Date.now() - since);
  }
}
