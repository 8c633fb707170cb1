import { setTimeout as sleep } from 'node:timers/promises';
import type { Config } from '../config/config.ts';
import { DECLARATION_URI, policies, type Declaration } from '../domain/declaration.ts';
import { parseDomain } from '../domain/domain.ts';
import { CdpError, errorText } from '../errors.ts';
import { Definitions, type Definition } from './definitions/definitions.ts';
import { followDefinition } from './definitions/follow.ts';
import { Backends, type BackendReport } from '../health/backends.ts';
import { FileWatch } from '../health/file-watch.ts';
import { Prober } from '../health/prober.ts';
import { HangWatch } from './hangs/hang-watch.ts';
import { blockJobStatus, blockJobType, lifecycleEvent, startedDetail, stoppedDetail } from '../libvirt/constants.ts';
import { isLibvirtError, libvirtErrorCode } from '../libvirt/errors.ts';
import type { LibvirtSession } from '../libvirt/session.ts';
import type { DomainRef } from '../libvirt/types.ts';
import type { Log } from '../log.ts';
import type { QmpEvent } from '../qmp/monitor.ts';
import type { EventLog } from '../store/event-log.ts';
import type { RecordStore } from '../store/record-store.ts';
import { lastStart } from '../store/start-marker.ts';
import { imageName } from '../storage/image.ts';
import { scratchOf } from '../storage/scratch.ts';
import { ImageOpener } from '../storage/opener.ts';
import type { HookAnswer } from './starts/hook-answer.ts';
import { StartGuard } from './starts/start-guard.ts';
import { StartWatch, type FailedStart } from './starts/start-watch.ts';
import { Arrivals } from './arrivals.ts';
import { hasMigrated } from './has-migrated.ts';
import { LiveDomain } from './live-domain.ts';
import type { EventName, ProtectionEvent, Side } from './model.ts';
import { Protector } from './protector.ts';
import { reachLibvirt } from './reach-libvirt.ts';
import { Relays } from './relays/relays.ts';
import { settleRestore } from './saved-domain.ts';
import { sinceStart, type DiskRecord, type DomainRecord, type DomainRecordSchema } from './record.ts';
import type { Shared } from './shared.ts';
import type { Step } from './steps.ts';
import { StorageRemarks } from './storage-remarks.ts';
import { UnreadableRecords } from './unreadable-records.ts';

export interface HostParts {
  session: LibvirtSession;
  store: RecordStore<DomainRecordSchema>;
  events: EventLog<ProtectionEvent>;
  log: Log;
  config: () => Config;
  /** A domain's states were looked at and shown. */
  shown: (protector: Protector) => void;
  /** A domain was defined, started or found, and its own declaration has been followed. */
  seen: (ref: DomainRef) => void;
  /** Libvirt could not start this domain. */
  startFailed: (protector: Protector, start: FailedStart) => Promise<void>;
  /** A guest waits for a copy that QEMU can't let go of, and the other copy answers. */
  helpless: (protector: Protector, dev: string, side: Side) => Promise<void>;
  afterStep: (step: Step) => void;
}

/** What a hook holds up is waited for: a call that is given up keeps libvirt's worker busy all the same. */
const heldUpMs = 24 * 60 * 60_000;

/** A server, device or file system is asked so often at least whether it answers. */
const mostBetweenProbesMs = 5_000;

/** How long a request waits for a libvirt that is not connected. */
const reachMs = 5_000;

/** The protected domains of this host: one protector each, woken by what libvirt reports. */
export class Host {
  readonly session: LibvirtSession;
  readonly events: EventLog<ProtectionEvent>;
  readonly config: () => Config;
  readonly #shared: Shared;
  readonly log: Log;
  readonly opener: ImageOpener;
  readonly relays: Relays;
  readonly definitions: Definitions;
  readonly arrivals = new Arrivals(this);
  readonly unreadable = new UnreadableRecords(this);
  readonly #seen: (ref: DomainRef) => void;
  readonly #protectors = new Map<string, Protector>();
  /** Of domains that are being looked at because the agent or libvirt is new. */
  readonly #looks = new Map<string, Promise<void>>();
  readonly #starts: StartWatch;
  readonly #guard: StartGuard;
  readonly #backends: Backends;
  readonly #hangs: HangWatch;
  readonly #storage: StorageRemarks;
  readonly #files = new FileWatch((uuid) => this.#protectors.get(uuid)?.suspectFiles());
  #claiming: Promise<unknown> = Promise.resolve();
  /** How many disks were protected when a record was last changed. */
  #claims = 0;

  constructor({ session, store, events, log, config, shown, seen, startFailed, helpless, afterStep }: HostParts) {
    this.session = session;
    this.events = events;
    this.config = config;
    this.#seen = seen;
    this.log = log;
    this.definitions = new Definitions(session);
    this.opener = ImageOpener.of(() => session.client, config);
    this.relays = new Relays(() => config().socket, this.opener);
    this.#starts = new StartWatch({
      session,
      log,
      failed: async (start) => {
        const protector = this.protectorOf(start.uuid);
        if (protector !== null) await startFailed(protector, start);
      },
      ended: async (uuid) => {
        const protector = this.protectorOf(uuid);
        if (protector !== null) await this.#missed(protector);
      },
    });
    this.#guard = new StartGuard({
      storePath: config().store,
      log,
      records: () => this.protectors().map(({ record }) => record),
      lookUpDeadlineMs: () => config().mirror.timeoutMs,
    });
    const patienceMs = (): number => config().mirror.timeoutMs;
    const prober = new Prober(patienceMs, this.opener);
    this.#backends = new Backends({
      prober,
      intervalMs: () => Math.min(mostBetweenProbesMs, patienceMs()),
      suspected: (uuid) => this.#hangs.suspect(uuid),
    });
    this.#hangs = new HangWatch({
      protectors: () => this.protectors(),
      prober,
      backends: this.#backends,
      log,
      patienceMs,
      helpless,
    });
    this.#storage = new StorageRemarks(() => ({ deadlineMs: config().mirror.timeoutMs, opener: this.opener }), log);
    this.#shared = {
      store,
      events,
      log,
      settings: () => ({ engine: config().engine, maxBytesPerS: config().resync.maxBytesPerS }),
      probeDeadlineMs: () => config().mirror.timeoutMs,
      scratchOf: (uuid) => scratchOf(config().verify.scratch, uuid),
      opener: this.opener,
      relays: this.relays,
      afterStep,
      recordChanged: () => this.#recordChanged(),
      shown: (protector) => {
        this.#storage.consider(protector);
        shown(protector);
      },
      watchFiles: (uuid, paths) => this.#watchFiles(uuid, paths),
      watchCopies: (uuid, images) => this.#backends.watch(uuid, images),
      undeclare: (uuid, dev) => this.definitions.undeclare(uuid, dev),
    };
  }

  /** Reads the records, listens to libvirt, and looks at every domain whenever libvirt is reached. */
  async start(): Promise<void> {
    const { records, unreadable } = await this.#shared.store.all();
    for (const record of records) {
      this.#add(sinceStart(record, await lastStart(this.config().store, record.uuid))).loseSight();
    }
    this.unreadable.add(unreadable);
    if (unreadable.size > 0) await this.#guard.keepListed();
    this.#guard.recordsChanged();
    const { events } = this.session;
    await events.onLifecycle(({ domain, event, detail }) => this.#onLifecycle(domain, event, detail));
    await events.onQemuMonitorEvent(({ domain, event, seconds, micros, details }) => {
      if (event === 'RESUME') {
        this.#starts.settle(domain.uuid);
        this.#hangs.suspect(domain.uuid);
      }
      this.#protectors
        .get(domain.uuid)
        ?.live?.deliver({ event, timeMs: seconds * 1000 + micros / 1000, data: eventData(details) });
    });
    await events.onBlockJob(({ domain, disk, type, status }) => {
      const protector = this.#protectors.get(domain.uuid);
      if (type === blockJobType.copy && (status === blockJobStatus.failed || status === blockJobStatus.canceled)) {
        protector?.copyFailed(disk, "libvirt's copy job failed");
      }
      protector?.forgetXml();
    });
    await events.onMetadataChange(({ domain, uri }) => {
      if (uri === DECLARATION_URI) this.#inBackground(domain, this.#follow(domain));
    });
    await events.onDeviceRemoved(({ domain }) => this.#protectors.get(domain.uuid)?.forgetXml());
    await events.onDeviceAdded(({ domain }) => this.#protectors.get(domain.uuid)?.forgetXml());
    this.session.onDisconnected(() => {
      for (const protector of this.#protectors.values()) protector.loseSight();
    });
    this.session.onConnected(() => void this.#lookAtAll());
  }

  protectors(): Protector[] {
    return [...this.#protectors.values()].filter(({ record }) => record.disks.length > 0);
  }

  protectorOf(uuid: string): Protector | null {
    const protector = this.#protectors.get(uuid);
    return protector !== undefined && protector.record.disks.length > 0 ? protector : null;
  }

  /** Waits a moment for libvirt. @throws CdpError `libvirt-unreachable` */
  async reached(): Promise<void> {
    await reachLibvirt(this.session, this.config().libvirt.socket, reachMs);
  }

  /** Waits a moment for the first look at a domain, before which nobody knows whether it runs. */
  async looked(uuid: string): Promise<void> {
    const look = this.#looks.get(uuid)?.catch(() => undefined);
    if (look !== undefined) await Promise.race([look, sleep(reachMs, undefined, { ref: false })]);
  }

  /** A domain by name, UUID or id, as in virsh. @throws CdpError `no-such-domain` */
  async find(name: string): Promise<DomainRef> {
    const { client } = this.session;
    const lookups = [
      () => client.lookupByName(name),
      ...(/^[0-9a-f-]{32,36}$/i.test(name) ? [() => client.lookupByUuid(name)] : []),
      ...(/^\d+$/.test(name) ? [() => client.lookupById(Number(name))] : []),
    ];
    for (const lookup of lookups.reverse()) {
      try {
        return await lookup();
      } catch (error) {
        if (!isLibvirtError(error, libvirtErrorCode.noDomain)) throw error;
      }
    }
    throw new CdpError({
      code: 'no-such-domain',
      message: `libvirt has no domain '${name}'`,
      hint: 'virsh list --all shows the domains',
    });
  }

  /** The domain's definition, which is there. @throws CdpError `domain-gone` */
  async definition({ uuid, name }: { uuid: string; name: string }): Promise<Definition> {
    const definition = await this.definitions.read(uuid);
    if (definition !== null) return definition;
    throw new CdpError({
      code: 'domain-gone',
      message: `libvirt knows ${name} (${uuid}) no more`,
      hint: `define it again under its UUID, or virt-cdp unprotect ${name} to forget it`,
    });
  }

  /** Work that finds out whether an image is free and takes it: one at a time on this host. */
  async claiming<T>(work: () => Promise<T>): Promise<T> {
    const done = this.#claiming.then(work);
    this.#claiming = done.catch(() => undefined);
    return done;
  }

  /** Protects these disks from now on; the record is durable before anything is done to the domain. */
  async declare(ref: DomainRef, policy: Declaration['policy'], disks: DiskRecord[]): Promise<Protector> {
    const protector = await this.#protectorFor(ref);
    await protector.amend((record) => {
      const others = record.disks.filter((disk) => !disks.some(({ dev }) => dev === disk.dev));
      for (const { dev, mirror } of disks) protector.note('declared', dev, { mirror: imageName(mirror.image), policy });
      return { ...record, policy, disks: [...others, ...disks] };
    });
    return protector;
  }

  /** Takes over what another host knows of a domain, in place of what was known here. */
  async adopt(record: DomainRecord): Promise<void> {
    const protector = await this.#protectorFor(record);
    await protector.amend(({ lastStart }) => ({ ...record, lastStart }));
  }

  /** Begins to protect what was declared, if the domain runs. */
  async begin(ref: DomainRef): Promise<void> {
    if (this.#protectors.get(ref.uuid)?.live != null) return;
    const now = await this.session.client.findByUuid(ref.uuid);
    if (now !== null && now.id >= 0) await this.#attach(now);
  }

  /** From memory alone: libvirt holds the domain locked while it waits for this. */
  answerHook(operation: string, domainXml: string): HookAnswer {
    const { name, uuid } = parseDomain(domainXml);
    if (operation === 'prepare') this.relays.kill(uuid);
    const answer = this.unreadable.answer(uuid, operation, domainXml) ?? this.#guard.answer(operation, domainXml);
    if (answer.refuse === null) this.#starts.passed(operation, uuid);
    else {
      this.tell(name, null, 'start-refused', { reason: answer.refuse.message });
    }
    return answer;
  }

  /** An event of a domain that has no protector, or whose protector does not matter to it. */
  tell(domain: string, disk: string | null, event: EventName, detail: Record<string, unknown>): void {
    this.events.append({ time: new Date().toISOString(), domain, disk, event, from: null, to: null, detail });
    this.log.info(event, { domain, disk, ...detail });
  }

  /** How what the copies in use lie on answers. */
  backends(): BackendReport[] {
    return this.#backends.report();
  }

  async close(): Promise<void> {
    this.#starts.close();
    this.#hangs.close();
    this.#backends.close();
    await Promise.all([...this.#protectors.values()].map((protector) => protector.close()));
    await this.#files.close();
    await this.#guard.close();
    this.opener.close();
  }

  #add(record: DomainRecord): Protector {
    const protector = new Protector(this.#shared, record);
    this.#protectors.set(record.uuid, protector);
    return protector;
  }

  #onLifecycle(ref: DomainRef, event: number, detail: number): void {
    if (this.unreadable.onLifecycle(ref, event)) return;
    if (event !== lifecycleEvent.defined) this.#starts.settle(ref.uuid);
    switch (event) {
      case lifecycleEvent.started:
        this.#inBackground(
          ref,
          this.#attach(ref, detail === startedDetail.booted).then(() => this.#seen(ref)),
        );
        this.#settleRestore(ref);
        break;
      case lifecycleEvent.stopped:
      case lifecycleEvent.crashed:
        this.#protectors.get(ref.uuid)?.detach({
          migrated: event === lifecycleEvent.stopped && detail === stoppedDetail.migrated,
        });
        // A transient domain is gone now, and what could not follow its definition while it ran now can.
        this.#inBackground(ref, this.#follow(ref));
        this.#settleRestore(ref);
        break;
      case lifecycleEvent.resumed:
        this.#protectors.get(ref.uuid)?.wake();
        this.#settleRestore(ref);
        break;
      case lifecycleEvent.defined:
      case lifecycleEvent.undefined:
        this.#inBackground(
          ref,
          this.#follow(ref).then(() => this.#seen(ref)),
        );
        this.#followContested();
        break;
      default:
        this.#protectors.get(ref.uuid)?.wake();
    }
  }

  /**
   * After a time without libvirt anything may have happened. What is protected is looked up one by one: a domain that somebody's
   * hook holds up holds up the list of all.
   */
  async #lookAtAll(): Promise<void> {
    const known = [...this.#protectors.values()];
    for (const protector of known) {
      const { uuid } = protector.record;
      const look = this.#lookAt(protector).finally(() => this.#looks.delete(uuid));
      this.#looks.set(uuid, look);
      this.#inBackground(protector.record, look);
    }
    this.#inBackground({ name: 'with unreadable records' }, this.unreadable.lookUp(heldUpMs));
    try {
      for (const ref of await this.session.client.listDomains({ all: true }, heldUpMs)) {
        if (this.unreadable.problemOf(ref.uuid) !== null || known.some(({ record }) => record.uuid === ref.uuid))
          continue;
        const followed = ref.id >= 0 ? this.#attach(ref) : this.#follow(ref);
        this.#inBackground(
          ref,
          followed.then(() => this.#seen(ref)),
        );
      }
    } catch (error) {
      this.log.warn('the domains could not be listed', { error: errorText(error) });
    }
  }

  #settleRestore({ uuid, name }: { uuid: string; name: string }): void {
    const protector = this.#protectors.get(uuid);
    if (protector !== undefined) this.#inBackground({ name }, settleRestore(this.session.client, protector));
  }

  async #lookAt(protector: Protector): Promise<void> {
    const { record, live } = protector;
    const ref = await this.session.client.findByUuid(record.uuid, heldUpMs);
    if (ref === null || ref.id < 0) {
      const migrated = await hasMigrated(this.session.client, ref, this.log);
      // An event may have told of a start or a stop meanwhile.
      if (protector.live === live) {
        protector.detach({ migrated });
        // Whether a start that is watched has failed before the guest ran is found out there.
        if (!this.#starts.isAwaited(record.uuid)) await this.#missed(protector);
      }
    }
    this.#settleRestore(record);
    if (ref === null) return this.#follow(record);
    await (ref.id >= 0 ? this.#attach(ref) : this.#follow(ref));
    this.#seen(ref);
  }

  async #missed(protector: Protector): Promise<void> {
    await protector.missed(await lastStart(this.config().store, protector.record.uuid));
  }

  async #attach(ref: DomainRef, booted = false): Promise<void> {
    await this.#follow(ref);
    const protector = this.#protectors.get(ref.uuid);
    if (protector === undefined || protector.record.disks.length === 0) return;
    const word = booted ? null : await this.arrivals.word(ref.uuid);
    const start = await lastStart(this.config().store, ref.uuid);
    // It may have stopped since it was found: what has been told of a stop is not told again.
    const { stops } = protector;
    const now = await this.session.client.findByUuid(ref.uuid, heldUpMs);
    if (now?.id !== ref.id || protector.stops !== stops) return protector.missed(start);
    // Nothing may come in between: an event and a look at all domains may both have found it.
    if (protector.live?.ref.id === ref.id) {
      protector.forgetXml();
      return;
    }
    const live: LiveDomain = new LiveDomain(this.session, ref, this.relays, () => protector.monitorSilent(live));
    const looked = protector.attach(live, { start, booted, identical: word ?? [] });
    if (word !== null) await this.arrivals.goOn(ref, live, looked);
    await looked;
  }

  /** A definition that could not be followed does not keep the domain from being protected by its record. */
  async #follow({ uuid, name }: { uuid: string; name: string }): Promise<void> {
    try {
      const definition = await this.definitions.read(uuid);
      if (definition !== null) this.#guard.defined(definition.domain);
      if (!this.#protectors.has(uuid)) {
        const problem = definition?.domain.declarationProblem ?? null;
        if (problem !== null)
          this.log.warn('the declaration can not be read', { domain: name, error: errorText(problem) });
        if (definition?.domain.declaration == null) return;
      }
      await followDefinition(this, await this.#protectorFor({ uuid, name }));
    } catch (error) {
      this.log.warn('could not follow a definition', { domain: name, error: errorText(error) });
    }
  }

  /** A mirror may have been set free. */
  #followContested(): void {
    for (const { record } of this.protectors())
      if (record.disks.some(({ contested }) => contested !== null)) this.#inBackground(record, this.#follow(record));
  }

  /** @throws CdpError `record-invalid` */
  async #protectorFor({ uuid, name }: { uuid: string; name: string }): Promise<Protector> {
    this.unreadable.requireReadable(uuid);
    const start = await lastStart(this.config().store, uuid);
    return (
      this.#protectors.get(uuid) ??
      this.#add({ version: 1, uuid, name, policy: policies[0], lastStart: start, disks: [], restoreOwed: null })
    );
  }

  #watchFiles(uuid: string, paths: string[]): void {
    this.#files
      .watch(uuid, paths)
      .catch((error: unknown) => void this.log.warn('files could not be watched', { error: errorText(error) }));
  }

  #recordChanged(): void {
    this.#guard.recordsChanged();
    const claims = this.protectors().flatMap(({ record }) => record.disks).length;
    if (claims < this.#claims) this.#followContested();
    this.#claims = claims;
  }

  #inBackground(ref: { name: string }, work: Promise<void>): void {
    work.catch((error: unknown) =>
      this.log.warn('could not follow a domain', { domain: ref.name, error: errorText(error) }),
    );
  }
}

function eventData(details: string | null): QmpEvent['data'] {
  return details === null ? {} : (JSON.parse(details) as QmpEvent['data']);
}
