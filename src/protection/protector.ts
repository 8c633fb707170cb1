import { errorText } from '../errors.ts';
import type { Log } from '../log.ts';
import type { QmpEvent } from '../qmp/monitor.ts';
import { Announcer } from './announcer.ts';
import { currentPairs, stoppedReason, withStop } from './at-stop.ts';
import type { Note } from './definitions/compare.ts';
import type { DiskMemory } from './disk-memory.ts';
import { DomainMemory } from './domain-memory.ts';
import { execute, StepFailed, type Workbench } from './execute.ts';
import { imagesInUse } from './hangs/copies-in-use.ts';
import { lookWithoutAsking } from './hangs/hang-state.ts';
import type { LiveDomain } from './live-domain.ts';
import type { DiskStatus, DomainStatus, EventName, Side } from './model.ts';
import type { Observation } from './observation.ts';
import { isAtWork, observe } from './observe.ts';
import { plan, withDisk } from './planner/plan.ts';
import { primaryFiles, PrimaryFiles } from './primary-files.ts';
import { RecordKeeper } from './record-keeper.ts';
import { isFirstStart, movedAway, sinceStart, type DiskRecord, type DomainRecord } from './record.ts';
import {
  diskStatus,
  domainStatus,
  goneRemark,
  isWorseThanShown,
  recordedStatus,
  standingOf,
  stateOf,
  unseenStatus,
  withRemark,
} from './status.ts';
import type { Shared } from './shared.ts';

/** What a look at a domain's definition found. */
export interface Followed {
  /** What it says otherwise and is not followed, a sentence for a disk. */
  remarks: ReadonlyMap<string, string>;
  notes: Note[];
}

/** A look is taken so often while a job's progress is worth showing. */
const progressMs = 1_000;

/** A look is taken so often when nothing happens, for the epochs' sake. */
const idleMs = 60_000;

/** After a failed step the next look is taken at once; if that fails too, after so long, and then twice as long up to the second. */
const firstPauseMs = 100;
const lastPauseMs = 5_000;

/** An external snapshot is only announced, by the job that makes its overlay: so many looks, one a second, to see it. */
const looksAfterSnapshot = 5;

/** So many looks without an end are a planner that goes in circles; it is given a rest. */
const maxLooks = 100;

/**
 * Protects one domain: observe, plan, execute, observe again, until the plan is empty.
 *
 * INVARIANTS
 * - Everything that changes the domain or its record runs in the queue, one thing at a time, in the order of asking.
 * - After a wake there is a look that began later; wakes are never lost and never pile up.
 * - Nothing of one protector waits for another's.
 */
export class Protector {
  readonly #shared: Shared;
  readonly #announcer: Announcer;
  readonly #keeper: RecordKeeper;
  readonly #memory = new DomainMemory();
  readonly #files = new PrimaryFiles();
  #looksSoon = 0;
  /** The recorded states are those of a look since the agent, its connection to libvirt, or this run or stop of the domain began. */
  #inSight = true;
  #gone = false;
  /** What the domain's definition says otherwise than its record, by disk. */
  #remarks: ReadonlyMap<string, string> = new Map();
  #live: LiveDomain | null = null;
  /** The run of which the queue knows how it began; before that no look is taken at it. */
  #begun: LiveDomain | null = null;
  #last: Observation | null = null;
  #departed: (identical: string[]) => void = () => undefined;
  #queue: Promise<unknown> = Promise.resolve();
  #woken = false;
  #failures = 0;
  #timer: NodeJS.Timeout | undefined;
  #closed = false;
  /** How often the domain was seen to have stopped; changed here alone. */
  stops = 0;

  constructor(shared: Shared, record: DomainRecord) {
    this.#shared = shared;
    this.#announcer = new Announcer(shared.events, shared.log, () => this.record.name);
    this.#keeper = new RecordKeeper(shared.store, record, shared.recordChanged);
  }

  get record(): DomainRecord {
    return this.#keeper.record;
  }

  get #log(): Log {
    return this.#shared.log.child({ domain: this.record.name });
  }

  /** libvirt knew no such domain when it was last asked. */
  get gone(): boolean {
    return this.#gone;
  }

  get live(): LiveDomain | null {
    return this.#live;
  }

  get observation(): Observation | null {
    return this.#last;
  }

  /**
   * A QEMU of this domain runs, by the start of this name; it has been looked at when the promise is kept. `booted`: it
   * has only just begun to, and not from a saved state. `identical`: it has come
   * from another host, where the copies of these disks were identical.
   */
  async attach(
    live: LiveDomain,
    { start, booted, identical = [] }: { start: string | null; booted: boolean; identical?: string[] },
  ): Promise<void> {
    this.#live = live;
    this.#last = null;
    this.#inSight = false;
    this.#memory.begin();
    if (!booted) this.#files.suspect();
    live.monitor.onEvent((event) => this.#heard(event));
    if (booted) this.#noteStart();
    await this.#enqueue(async () => {
      if (booted && this.#live === live && isFirstStart(this.record, start))
        for (const { dev, atStop } of this.record.disks) this.memoryOf(dev).atStop = atStop;
      if (this.#live === live) for (const dev of identical) this.memoryOf(dev).atStop = { clean: true, primary: null };
      this.#keeper.take(sinceStart(this.record, start));
      this.#begun = live;
      await this.#turn();
    });
  }

  #noteStart(): void {
    const onMirror = this.record.disks.flatMap(({ dev, primary }) => (primary.current ? [] : [dev]));
    this.note('started', null, onMirror.length > 0 ? { onMirror } : {});
  }

  /** The domain's QEMU is gone; `migrated`: the guest goes on in another host's. */
  detach({ migrated }: { migrated: boolean }): void {
    const stoppedAtMs = Date.now();
    this.stops += 1;
    const stop = this.#memory.stopped(this.#last?.disks ?? []);
    const watched = this.#inSight;
    this.#memory.stopVerifies('the domain does not run any more');
    this.#live = null;
    this.#last = null;
    this.#inSight = false;
    this.#shared.watchFiles(this.record.uuid, []);
    this.#shared.watchCopies(this.record.uuid, []);
    clearTimeout(this.#timer);
    const relaysEnd = this.#shared.relays
      .endAll(this.record)
      .catch((error: unknown) => void this.#log.error('a relay is left', { error: errorText(error) }));
    void this.#enqueue(async () => {
      await relaysEnd;
      const stoppedAt = new Date(stoppedAtMs).toISOString();
      if (migrated) await this.#leave(stoppedAt, stop.pairs);
      else {
        const deadlineMs = this.#shared.probeDeadlineMs();
        this.#keeper.take(await withStop(this.record, { ...stop, watched, stoppedAtMs }, deadlineMs));
      }
      await this.#showStates(() => ({ state: 'stopped', reason: stoppedReason(this.record) }), stoppedAt);
      this.#inSight = this.#live === null;
      await this.#keeper.catchUp();
    }).catch((error: unknown) => {
      this.#log.error('the stop could not be recorded', { error: errorText(error) });
    });
  }

  /** The hook saw it start by this name, and it has stopped; whether anybody looked at it meanwhile, the record knows. */
  async missed(start: string | null): Promise<void> {
    await this.#enqueue(async () => {
      const record = sinceStart(this.record, start);
      if (record === this.record || this.#live !== null) return;
      this.#keeper.take(record);
      await this.#saveInTime(record);
    });
  }

  /**
   * Of a domain that is to migrate, to be asked before: when its QEMU is gone here, and this host's record durably says that the mirror is
   * not its own any more, the disks whose copies were identical at the end.
   */
  departure(): Promise<string[]> {
    return new Promise((resolve) => (this.#departed = resolve));
  }

  /** Until the next look nobody knows what has happened to the domain since the last one. */
  loseSight(): void {
    this.#inSight = false;
  }

  /** QEMU's monitor does not answer, or answers again: only then can the domain be looked at. */
  monitorSilent(live: LiveDomain): void {
    if (this.#live !== live) return;
    if (live.silentSince === null) this.wake();
    else this.note('hang', null, { why: `QEMU has not answered its monitor since ${live.silentSince}` });
  }

  /** Asks for a look at the domain, now or after what is under way. */
  wake(): void {
    if (this.#woken || this.#closed) return;
    this.#woken = true;
    // A look that began after this is the one that was asked for.
    void this.#enqueue(() => (this.#woken ? this.#turn() : Promise.resolve()));
  }

  /** Changes the record in the queue, durably, and acts on it as far as it goes without waiting. @throws what `change` throws */
  async change<T>(change: (record: DomainRecord) => Promise<{ record: DomainRecord; result: T }>): Promise<T> {
    return this.#enqueue(async () => {
      const { record, result } = await change(this.record);
      await this.#keeper.save(record);
      for (const memory of this.#memory.all()) memory.tryNow();
      await this.#turn();
      return result;
    });
  }

  /** As `change`, for what needs no waiting and answers nothing. */
  async amend(change: (record: DomainRecord) => DomainRecord): Promise<void> {
    await this.change((record) => Promise.resolve({ record: change(record), result: undefined }));
  }

  /**
   * Lets the record follow what libvirt has of the domain, in the queue. `look` takes the record and answers what is to be said of
   * it from now on, null if libvirt knows no such domain; what it saves is durable.
   */
  async follow(
    look: (record: DomainRecord, save: (record: DomainRecord) => Promise<void>) => Promise<Followed | null>,
  ): Promise<void> {
    await this.#enqueue(async () => {
      const found = await look(this.record, (record) => this.#keeper.save(record));
      const protects = this.record.disks.length > 0;
      if (found === null && !this.#gone && protects) this.note('gone', null, {});
      this.#gone = found === null;
      for (const [dev, remark] of found?.remarks ?? [])
        if (remark !== this.#remarks.get(dev)) this.note('definition-differs', dev, { what: remark });
      this.#remarks = found?.remarks ?? new Map<string, string>();
      for (const { event, disk, detail } of found?.notes ?? []) this.note(event, disk, detail);
      this.#live?.forgetPersistentDisks();
      await this.#turn();
    });
  }

  /** A look has been taken, and what it led to was done, since this was called. */
  async looked(): Promise<void> {
    await this.#enqueue(() => this.#turn());
  }

  /** Of a domain that does not run: its disks that were asked to be removed need nothing more. */
  async forgetRemoved(): Promise<void> {
    await this.#enqueue(async () => {
      for (const { dev, intent } of this.record.disks) if (intent.kind === 'remove') await this.#forgetDisk(dev);
    });
  }

  /** libvirt says that the domain's devices or definition changed. */
  forgetXml(): void {
    this.#live?.forgetDisks();
    this.#live?.forgetPersistentDisks();
    this.wake();
  }

  /** The file of a primary may have vanished, or be another one. */
  suspectFiles(): void {
    this.#files.suspect();
    this.wake();
  }

  /** libvirt's own copy job for a rebuild ended without success. */
  copyFailed(dev: string, why: string): void {
    this.memoryOf(dev).copyFailed = why;
    this.wake();
  }

  /** `blind`: why nobody can look at the domain now; what was seen before is then no news. */
  status(blind: string | null = null): DomainStatus {
    const running = this.#live !== null;
    const silentSince = this.#live?.silentSince ?? null;
    const silence = silentSince === null ? null : `QEMU has not answered its monitor since ${silentSince}`;
    const unseen = blind ?? silence ?? (this.#inSight || this.#last !== null ? null : 'it was not looked at yet');
    const disks = this.record.disks.map((record) => {
      const seen = this.#last?.disks.find((disk) => disk.record.dev === record.dev);
      const memory = this.memoryOf(record.dev);
      if (unseen !== null || !this.#inSight) return unseenStatus(record, memory, unseen);
      return running && seen !== undefined ? diskStatus({ ...seen, record }, memory) : recordedStatus(record, memory);
    });
    const also = (dev: string): string | undefined => (this.#gone ? goneRemark(this.record) : this.#remarks.get(dev));
    return domainStatus(
      this.record,
      running,
      disks.map((disk) => withRemark(withRemark(disk, also(disk.dev)), this.memoryOf(disk.dev).storageRemark)),
      standingOf(this.record, running, this.#last),
    );
  }

  memoryOf(dev: string): DiskMemory {
    return this.#memory.of(dev);
  }

  note(event: EventName, disk: string | null, detail: Record<string, unknown>): void {
    this.#announcer.note(event, disk, detail);
  }

  /** Ends when what is under way has ended; the domain stays as it is. */
  async close(): Promise<void> {
    if (this.#memory.stopVerifies('the agent ends')) await this.looked();
    this.#closed = true;
    clearTimeout(this.#timer);
    await this.#queue.catch(() => undefined);
  }

  #enqueue<T>(work: () => Promise<T>): Promise<T> {
    const result = this.#queue.then(work);
    this.#queue = result.catch(() => undefined);
    return result;
  }

  async #turn(): Promise<void> {
    this.#woken = false;
    clearTimeout(this.#timer);
    const live = this.#live;
    if (live === null || live !== this.#begun || this.record.disks.length === 0) return;
    try {
      await this.#lookAndAct(live);
      await this.#keeper.catchUp();
      this.#failures = 0;
      this.#sleep(this.#nextLookMs());
    } catch (error) {
      if (this.#live !== live) return;
      this.#failed(error);
      this.#sleep(this.#failures === 0 ? 0 : Math.min(lastPauseMs, firstPauseMs * 2 ** this.#failures));
      this.#failures += 1;
    }
  }

  async #lookAndAct(live: LiveDomain): Promise<void> {
    const unasked = lookWithoutAsking(this.#last, this.#memory);
    if (unasked !== null) return this.#showObserved(live, unasked);
    for (let look = 1; look <= maxLooks; look++) {
      this.#woken = false;
      const observation = await this.#observe(live);
      if (this.#live !== live) return;
      this.#last = observation;
      let steps = plan(observation);
      // QEMU opens a primary's file anew, by its path, when its device leaves it.
      if (steps.some(({ step }) => step === 'park' || step === 'promote'))
        steps = plan((this.#last = await this.#lookAtFiles(live, observation, { patient: false })));
      // What follows may take long; a state that is no longer true is not shown meanwhile.
      else if (isWorseThanShown(observation, steps, (dev) => this.memoryOf(dev).trouble))
        await this.#showObserved(live, observation);
      if (steps.length === 0) {
        await this.#showObserved(live, observation);
        return;
      }
      this.#log.debug('plan', { steps: steps.map(({ step }) => step), run: observation.run });
      for (const step of steps) {
        const beganMs = performance.now();
        await execute(step, this.#bench(live));
        this.#log.debug('step', { step: step.step, ms: Math.round(performance.now() - beganMs) });
        this.#shared.afterStep(step);
        if (this.#closed) return;
      }
    }
    throw new Error(`no end after ${maxLooks} looks`);
  }

  async #observe(live: LiveDomain): Promise<Observation> {
    const observation = await observe(live, this.record, this.#memory, this.#shared.settings(), this.#lost('mirror'));
    live.seen(observation.run);
    this.#shared.watchFiles(this.record.uuid, observation.disks.flatMap(primaryFiles));
    this.#shared.watchCopies(this.record.uuid, observation.disks.flatMap(imagesInUse));
    if (this.#files.dueInMs > 0 || observation.run !== 'running') return observation;
    return this.#lookAtFiles(live, observation, { patient: true });
  }

  async #lookAtFiles(live: LiveDomain, o: Observation, how: { patient: boolean }): Promise<Observation> {
    await this.#files.look(live.ref.name, o.disks, (dev) => this.memoryOf(dev), this.#lost('primary'), how);
    const disks = o.disks.map((disk) => ({ ...disk, primaryGone: this.memoryOf(disk.record.dev).primaryGone }));
    return { ...o, disks };
  }

  #lost(side: Side): (dev: string, why: string) => void {
    return (dev, why) => this.note(`${side}-lost`, dev, { why });
  }

  #bench(live: LiveDomain): Workbench {
    return {
      live,
      memoryOf: (dev) => this.memoryOf(dev),
      saveRecord: (record) => this.#saveInTime(record),
      record: () => this.record,
      forgetDisk: (dev) => this.#forgetDisk(dev),
      requireNoFailedPair: () => this.#memory.requireNoFailedPair(this.#last?.disks ?? []),
      note: (event, disk, detail) => this.note(event, disk, detail),
      probeDeadlineMs: this.#shared.probeDeadlineMs(),
      opener: this.#shared.opener,
      scratch: this.#shared.scratchOf(this.record.uuid),
    };
  }

  #failed(error: unknown): void {
    const step = error instanceof StepFailed ? error.step : null;
    const why = errorText(error instanceof StepFailed ? error.cause : error);
    this.#log.warn('a step failed', { step: step?.step, error: why });
    if (step === null || !('dev' in step)) return;
    const memory = this.memoryOf(step.dev);
    if (memory.trouble === null) this.note('step-failed', step.dev, { step: step.step, error: why });
    memory.failed(why);
  }

  #saveInTime(record: DomainRecord): Promise<void> {
    return this.#keeper.saveInTime(record, (why) => this.note('record-not-durable', null, { error: why }));
  }

  async #forgetDisk(dev: string): Promise<void> {
    await this.#shared.undeclare(this.record.uuid, dev);
    const rest = this.record.disks.filter((disk) => disk.dev !== dev);
    const shown = this.status().disks.filter((disk) => disk.dev !== dev);
    if (this.#live !== null) await this.#showToLibvirt(this.#live, shown);
    await this.#keeper.save({ ...this.record, disks: rest });
    this.note('undeclared', dev, {});
  }

  async #showObserved(live: LiveDomain, observation: Observation): Promise<void> {
    const changed = await this.#showStates((disk) => {
      const seen = observation.disks.find(({ record }) => record.dev === disk.dev);
      if (seen === undefined) return { state: disk.state, reason: disk.reason };
      const view = stateOf(observation, seen, this.memoryOf(disk.dev).trouble);
      if (view.state === 'protected') this.memoryOf(disk.dev).succeeded();
      return view;
    });
    this.#inSight = true;
    if (changed || !live.statusShown) await this.#showToLibvirt(live, this.status().disks);
    this.#shared.shown(this);
  }

  async #showToLibvirt(live: LiveDomain, disks: DiskStatus[]): Promise<void> {
    try {
      await live.showStatus(disks);
    } catch (error) {
      this.#log.warn('the live metadata could not be written', { error: errorText(error) });
    }
  }

  /** Every change of a state is recorded and told. Answers whether there was one. */
  async #showStates(
    view: (disk: DiskRecord) => Pick<DiskRecord, 'state' | 'reason'>,
    now = new Date().toISOString(),
  ): Promise<boolean> {
    const before = this.record;
    const after = before.disks.reduce((record, disk) => {
      const { state, reason } = view(disk);
      if (state === disk.state && reason === disk.reason) return record;
      const seen = this.memoryOf(disk.dev).reached(disk);
      return withDisk(record, { ...seen, state, reason, since: state === disk.state ? disk.since : now });
    }, before);
    if (after === before) return false;
    await this.#saveInTime(after);
    this.#announcer.states(before.disks, after.disks);
    return true;
  }

  async #leave(at: string, pairs: string[]): Promise<void> {
    const running = this.record.disks.filter(({ state }) => state !== 'stopped');
    if (running.length === 0) return;
    const identical = currentPairs(this.record, pairs).filter(({ engine }) => engine === 'quorum');
    await this.#keeper.save(movedAway(this.record, at));
    this.note('migrated-away', null, {});
    this.#departed(identical.map(({ dev }) => dev));
  }

  /** What QEMU reports of the copies is remembered before the loop looks. */
  #heard(event: QmpEvent): void {
    this.#announcer.heard(event);
    this.#memory.learn(event, this.#last?.disks ?? [], (dev, side, why) => this.#lost(side)(dev, why));
    if (event.event === 'DEVICE_DELETED') this.#live?.forgetDisks();
    if (event.event === 'JOB_STATUS_CHANGE' && String(event.data['id']).startsWith('create-libvirt-'))
      this.#looksSoon = looksAfterSnapshot;
    this.wake();
  }

  #nextLookMs(): number {
    const disks = this.#last?.disks ?? [];
    if (this.#looksSoon > 0) {
      this.#looksSoon -= 1;
      return progressMs;
    }
    if (disks.some(isAtWork)) return progressMs;
    // A back-off may have run out since the look.
    const waits = disks.filter(({ mayRetry }) => !mayRetry).map(({ record }) => this.memoryOf(record.dev).retryInMs);
    return Math.min(idleMs, this.#files.dueInMs, ...waits.map((ms) => ms || progressMs));
  }

  #sleep(ms: number): void {
    if (this.#closed) return;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.wake(), ms);
  }
}
