import type { Config } from '../config/config.ts';
import { DECLARATION_KEY, DECLARATION_URI, declarationToXml, type Declaration } from '../domain/declaration.ts';
import { parseDomain, type Domain } from '../domain/domain.ts';
import { withErrorPolicy, withMetadata, withoutMetadata } from '../domain/edit.ts';
import { CdpError, errorText } from '../errors.ts';
import { blockJobStatus, blockJobType, lifecycleEvent, startedDetail } from '../libvirt/constants.ts';
import { isLibvirtError, libvirtErrorCode } from '../libvirt/errors.ts';
import type { LibvirtSession } from '../libvirt/session.ts';
import type { DomainRef } from '../libvirt/types.ts';
import type { Log } from '../log.ts';
import type { QmpEvent } from '../qmp/monitor.ts';
import type { EventLog } from '../store/event-log.ts';
import type { RecordStore } from '../store/record-store.ts';
import { lastStart } from '../store/start-marker.ts';
import { imageName } from '../storage/image.ts';
import { writeStaleSources } from './starts/stale-sources.ts';
import { answerHook, type HookAnswer } from './starts/hook-answer.ts';
import { StartWatch, type FailedStart } from './starts/start-watch.ts';
import { LiveDomain } from './live-domain.ts';
import type { ProtectionEvent } from './model.ts';
import { Protector, type Shared } from './protector.ts';
import { newDiskRecord, sinceStart, type DiskRecord, type DomainRecord, type DomainRecordSchema } from './record.ts';
import type { Step } from './steps.ts';

export interface HostParts {
  session: LibvirtSession;
  store: RecordStore<DomainRecordSchema>;
  events: EventLog<ProtectionEvent>;
  log: Log;
  config: () => Config;
  /** A domain's states were looked at and shown. */
  shown: (protector: Protector) => void;
  /** Libvirt could not start this domain. */
  startFailed: (protector: Protector, start: FailedStart) => Promise<void>;
  afterStep: (step: Step) => void;
}

/** How long a request waits for a libvirt that is not connected. */
const reachMs = 5_000;

function libvirtUnreachable(socket: string): CdpError {
  return new CdpError({
    code: 'libvirt-unreachable',
    message: `libvirt does not answer on ${socket}`,
    hint: 'systemctl status libvirtd (or virtqemud); another socket is named by libvirt.socket in the configuration',
  });
}

/** The protected domains of this host: one protector each, woken by what libvirt reports. */
export class Host {
  readonly session: LibvirtSession;
  readonly events: EventLog<ProtectionEvent>;
  readonly config: () => Config;
  readonly #shared: Shared;
  readonly #log: Log;
  readonly #protectors = new Map<string, Protector>();
  readonly #starts: StartWatch;
  /** One write of the list after the other. */
  #staleSources: Promise<void> = Promise.resolve();

  constructor({ session, store, events, log, config, shown, startFailed, afterStep }: HostParts) {
    this.session = session;
    this.events = events;
    this.config = config;
    this.#log = log;
    this.#starts = new StartWatch({
      session,
      log,
      failed: async (start) => {
        const protector = this.protectorOf(start.uuid);
        if (protector !== null) await startFailed(protector, start);
      },
    });
    this.#shared = {
      store,
      events,
      log,
      maxBytesPerS: () => config().resync.maxBytesPerS,
      probeDeadlineMs: () => config().mirror.timeoutMs,
      afterStep,
      recordChanged: () => this.#listStaleSources(),
      shown,
      undeclare: (record, dev) => this.#undeclare(record, dev),
    };
  }

  /** Reads the records, listens to libvirt, and looks at every running domain whenever libvirt is reached. */
  async start(): Promise<void> {
    for (const record of await this.#shared.store.all()) {
      this.#add(sinceStart(record, await lastStart(this.config().store, record.uuid)));
    }
    const { events } = this.session;
    await events.onLifecycle(({ domain, event, detail }) => this.#onLifecycle(domain, event, detail));
    await events.onQemuMonitorEvent(({ domain, event, seconds, micros, details }) => {
      if (event === 'RESUME') this.#starts.settle(domain.uuid);
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
    await events.onDeviceRemoved(({ domain }) => this.#protectors.get(domain.uuid)?.forgetXml());
    await events.onDeviceAdded(({ domain }) => this.#protectors.get(domain.uuid)?.forgetXml());
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
    const { session } = this;
    if (session.state === 'connected') return;
    let stop = (): void => undefined;
    const connected = new Promise<void>((resolve, reject) => {
      const timer = setTimeout(() => reject(libvirtUnreachable(this.config().libvirt.socket)), reachMs);
      const unsubscribe = session.onConnected(resolve);
      stop = () => {
        clearTimeout(timer);
        unsubscribe();
      };
    });
    await connected.finally(() => stop());
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

  /** What the next start of the domain uses; of a transient domain, what runs. */
  async definition(ref: DomainRef): Promise<{ domain: Domain; persistent: boolean }> {
    const persistent = await this.session.client.isPersistent(ref);
    return { domain: parseDomain(await this.session.client.domainXml(ref, { inactive: persistent })), persistent };
  }

  /** Protects these disks from now on; the record is durable before anything is done to the domain. */
  async declare(ref: DomainRef, policy: Declaration['policy'], disks: DiskRecord[]): Promise<Protector> {
    const known = this.#protectors.get(ref.uuid);
    if (known !== undefined) {
      await known.change((record) => {
        const others = record.disks.filter((disk) => !disks.some(({ dev }) => dev === disk.dev));
        for (const { dev, mirror } of disks) known.note('declared', dev, { mirror: imageName(mirror.image), policy });
        return Promise.resolve({ record: { ...record, policy, disks: [...others, ...disks] }, result: undefined });
      });
      if (known.live === null) await this.#attachIfRunning(ref);
      return known;
    }
    const start = await lastStart(this.config().store, ref.uuid);
    const record: DomainRecord = { version: 1, uuid: ref.uuid, name: ref.name, policy, lastStart: start, disks };
    await this.#shared.store.save(ref.uuid, record);
    const protector = this.#add(record);
    for (const { dev, mirror } of disks) protector.note('declared', dev, { mirror: imageName(mirror.image), policy });
    await this.#attachIfRunning(ref);
    return protector;
  }

  /** Writes the declaration into the domain's metadata, and with it what the disks' drivers must say. */
  async writeDeclaration(
    ref: DomainRef,
    declaration: Declaration | null,
    edit: (xml: string) => string,
  ): Promise<void> {
    const { client } = this.session;
    const xml = declaration === null ? null : declarationToXml(declaration);
    if (await client.isPersistent(ref)) {
      const persistent = await client.domainXml(ref, { inactive: true, secure: true });
      const declared =
        xml === null
          ? withoutMetadata(persistent, DECLARATION_URI)
          : withMetadata(persistent, DECLARATION_URI, DECLARATION_KEY, xml);
      await client.defineXml(edit(declared));
    }
    if (this.#protectors.get(ref.uuid)?.live != null || ref.id >= 0) {
      await client.setMetadata(ref, { uri: DECLARATION_URI, key: DECLARATION_KEY, xml, live: true, config: false });
    }
  }

  /** From memory alone: libvirt holds the domain locked while it waits for this. */
  answerHook(operation: string, domainXml: string): HookAnswer {
    const answer = answerHook(
      this.protectors().map(({ record }) => record),
      operation,
      domainXml,
      true,
    );
    const { name, uuid } = parseDomain(domainXml);
    if (answer.refuse === null) this.#starts.passed(operation, uuid);
    else {
      const detail = { reason: answer.refuse.message };
      this.events.append({
        time: new Date().toISOString(),
        domain: name,
        disk: null,
        event: 'start-refused',
        from: null,
        to: null,
        detail,
      });
    }
    return answer;
  }

  async close(): Promise<void> {
    this.#starts.close();
    await Promise.all([...this.#protectors.values()].map((protector) => protector.close()));
    await this.#staleSources;
  }

  #add(record: DomainRecord): Protector {
    const protector = new Protector(this.#shared, record);
    this.#protectors.set(record.uuid, protector);
    return protector;
  }

  #onLifecycle(ref: DomainRef, event: number, detail: number): void {
    if (event !== lifecycleEvent.defined) this.#starts.settle(ref.uuid);
    switch (event) {
      case lifecycleEvent.started:
        this.#inBackground(ref, this.#attach(ref, detail === startedDetail.booted));
        break;
      case lifecycleEvent.stopped:
      case lifecycleEvent.crashed:
        this.#protectors.get(ref.uuid)?.detach();
        break;
      case lifecycleEvent.defined:
        this.#protectors.get(ref.uuid)?.forgetXml();
        this.#inBackground(ref, this.#adoptDeclaration(ref));
        break;
      default:
        this.#protectors.get(ref.uuid)?.wake();
    }
  }

  /** After a time without libvirt anything may have happened. */
  async #lookAtAll(): Promise<void> {
    try {
      const running = await this.session.client.listDomains();
      for (const [uuid, protector] of this.#protectors) {
        if (protector.live !== null && !running.some((ref) => ref.uuid === uuid)) protector.detach();
      }
      for (const ref of running) this.#inBackground(ref, this.#attach(ref));
    } catch (error) {
      this.#log.warn('the running domains could not be listed', { error: errorText(error) });
    }
  }

  async #attachIfRunning(ref: DomainRef): Promise<void> {
    const { client } = this.session;
    const running = (await client.listDomains()).find(({ uuid }) => uuid === ref.uuid);
    if (running !== undefined) await this.#attach(running);
  }

  async #attach(ref: DomainRef, booted = false): Promise<void> {
    await this.#adoptDeclaration(ref);
    const protector = this.#protectors.get(ref.uuid);
    if (protector === undefined || protector.record.disks.length === 0) return;
    if (protector.live?.ref.id === ref.id) protector.forgetXml();
    else
      await protector.attach(new LiveDomain(this.session, ref), {
        start: await lastStart(this.config().store, ref.uuid),
        booted,
      });
  }

  /** A declaration that came with the domain's XML (an import, Terraform, virsh edit) begins a record: mirror not current. */
  async #adoptDeclaration(ref: DomainRef): Promise<void> {
    const { client } = this.session;
    const domain = parseDomain(await client.domainXml(ref, { inactive: ref.id < 0 }));
    if (domain.declarationProblem !== null) {
      this.#log.warn('the declaration can not be read', {
        domain: ref.name,
        error: errorText(domain.declarationProblem),
      });
    }
    const declared = domain.declaration;
    if (declared === null) return;
    const known = this.#protectors.get(ref.uuid)?.record.disks ?? [];
    const added = declared.disks.flatMap((disk) => {
      const defined = domain.disks.find(({ dev }) => dev === disk.dev);
      if (known.some(({ dev }) => dev === disk.dev)) return [];
      if (defined?.image == null || defined.unsupported !== null) {
        this.#log.warn('a declared disk can not be protected', {
          domain: ref.name,
          disk: disk.dev,
          why: defined?.unsupported ?? 'the domain has no such disk',
        });
        return [];
      }
      return [newDiskRecord(disk, defined.image, ref.id >= 0)];
    });
    if (added.length > 0) await this.declare(ref, declared.policy, added);
  }

  async #undeclare(record: DomainRecord, dev: string): Promise<void> {
    const ref = await this.find(record.uuid);
    const { domain } = await this.definition(ref);
    const { declaration } = domain;
    const disks = declaration?.disks.filter((disk) => disk.dev !== dev) ?? [];
    const previous = declaration?.disks.find((disk) => disk.dev === dev)?.previousErrorPolicy;
    const rest = declaration === null || disks.length === 0 ? null : { ...declaration, disks };
    await this.writeDeclaration(ref, rest, (xml) =>
      previous !== undefined && domain.disks.some((disk) => disk.dev === dev)
        ? withErrorPolicy(xml, dev, previous)
        : xml,
    );
  }

  #listStaleSources(): void {
    const records = this.protectors().map(({ record }) => record);
    this.#staleSources = this.#staleSources
      .then(() => writeStaleSources(this.config().store, records))
      .catch(
        (error: unknown) => void this.#log.warn('the stale sources could not be listed', { error: errorText(error) }),
      );
  }

  #inBackground(ref: DomainRef, work: Promise<void>): void {
    work.catch((error: unknown) =>
      this.#log.warn('could not follow a domain', { domain: ref.name, error: errorText(error) }),
    );
  }
}

function eventData(details: string | null): QmpEvent['data'] {
  return details === null ? {} : (JSON.parse(details) as QmpEvent['data']);
}
