/** libvirt's functions, typed. */
import { CallPool } from './call-pool.ts';
import { jobOperation, jobType, memoryStat, metadataType } from './constants.ts';
import type { DomainRunState } from './constants.ts';
import { isLibvirtError, libvirtErrorCode } from './errors.ts';
import { EventHub } from './event-hub.ts';
import type { DomainEvents } from './event-hub.ts';
import { openConnection } from './opening.ts';
import type { OpeningOptions } from './opening.ts';
import { procedures } from './procedures.ts';
import type { Caller } from './procedures.ts';
import type { DomainRef, SecretRef } from './types.ts';

export interface DomainState {
  state: DomainRunState;
  /** What it means depends on the state; for `paused` see `pausedReason`. */
  reason: number;
}

export interface MetadataChange {
  uri: string;
  /** The prefix that libvirt gives the element. */
  key: string;
  /** One element; null removes what is there. */
  xml: string | null;
  live: boolean;
  config: boolean;
}

export interface BlockCopyOptions {
  /** The destination exists and has the right size and format. */
  reuseExternal?: boolean;
  /** Required for persistent domains: the job does not survive the domain's stop. */
  transientJob?: boolean;
  /** Once ready, a guest's write is answered only when both sides have it (libvirt >= 8.0). */
  synchronousWrites?: boolean;
  /** Copy only the top image; the destination has its own backing chain. */
  shallow?: boolean;
  bandwidthBytesPerSec?: number;
}

export interface BlockJobInfo {
  /** See `blockJobType`. */
  type: number;
  /** Limit in bytes per second; 0 is none. */
  bandwidth: number;
  /** Progress in bytes; the job is ready or done when it equals `end`, but wait for the event. */
  cur: number;
  end: number;
}

/** Which of the named flags are set, as libvirt's bit mask. */
function flags(...named: [set: boolean | undefined, bit: number][]): number {
  return named.reduce((mask, [set, bit]) => (set === true ? mask | bit : mask), 0);
}

/**
 * Every function takes a deadline in ms (default 30 s, from the call to its answer) as its last argument, and rejects
 * with LibvirtError (the daemon's own answer), CallTimeoutError, ConnectionLostError or ProtocolError.
 */
export class LibvirtClient {
  readonly events: DomainEvents;
  readonly #caller: Caller;
  readonly #close: () => Promise<void>;

  constructor(caller: Caller, events: DomainEvents, close: () => Promise<void>) {
    this.#caller = caller;
    this.events = events;
    this.#close = close;
  }

  /** A client of one connection, which lasts until it is closed or lost. See `openConnection` for the errors. */
  static async connect(options: OpeningOptions, deadlineMs?: number): Promise<LibvirtClient> {
    const connection = await openConnection(options, deadlineMs);
    const calls = new CallPool({ open: () => Promise.resolve(connection), maxConnections: 1 });
    const events = new EventHub({ outlivesConnection: false });
    await events.attach(connection);
    return new LibvirtClient(calls, events, () => connection.close());
  }

  /** The daemon's version: 1,000,000 * major + 1,000 * minor + release. */
  version(deadlineMs?: number): Promise<number> {
    return this.#caller.call(procedures.version, undefined, deadlineMs);
  }

  /** The host's capabilities, as XML. */
  capabilities(deadlineMs?: number): Promise<string> {
    return this.#caller.call(procedures.capabilities, undefined, deadlineMs);
  }

  /** The active domains; with `all` those that are not running too. */
  async listDomains({ all }: { all?: boolean } = {}, deadlineMs?: number): Promise<DomainRef[]> {
    const activeOnly = 1;
    const { domains } = await this.#caller.call(
      procedures.listDomains,
      { wanted: true, flags: all === true ? 0 : activeOnly },
      deadlineMs,
    );
    return domains;
  }

  /** Rejects with `libvirtErrorCode.noDomain` if there is none. */
  lookupByName(name: string, deadlineMs?: number): Promise<DomainRef> {
    return this.#caller.call(procedures.lookupByName, name, deadlineMs);
  }

  lookupByUuid(uuid: string, deadlineMs?: number): Promise<DomainRef> {
    return this.#caller.call(procedures.lookupByUuid, uuid, deadlineMs);
  }

  /** Null if libvirt knows no such domain. */
  async findByUuid(uuid: string, deadlineMs?: number): Promise<DomainRef | null> {
    try {
      return await this.lookupByUuid(uuid, deadlineMs);
    } catch (error) {
      if (isLibvirtError(error, libvirtErrorCode.noDomain)) return null;
      throw error;
    }
  }

  lookupById(id: number, deadlineMs?: number): Promise<DomainRef> {
    return this.#caller.call(procedures.lookupById, id, deadlineMs);
  }

  /** The live XML of a running domain, its configuration with `inactive`; passwords only with `secure`. */
  domainXml(
    dom: DomainRef,
    { inactive, secure }: { inactive?: boolean; secure?: boolean } = {},
    deadlineMs?: number,
  ): Promise<string> {
    return this.#caller.call(procedures.xml, { dom, flags: flags([secure, 1], [inactive, 2]) }, deadlineMs);
  }

  defineXml(xml: string, deadlineMs?: number): Promise<DomainRef> {
    return this.#caller.call(procedures.defineXml, { xml, flags: 0 }, deadlineMs);
  }

  /** `what` is a mask of `undefineFlag`: what else may go; without it such a domain is refused. */
  undefine(dom: DomainRef, what = 0, deadlineMs?: number): Promise<void> {
    return this.#caller.call(procedures.undefine, { dom, flags: what }, deadlineMs);
  }

  /** Starts the domain; resolves to it with its new id. */
  create(dom: DomainRef, { paused }: { paused?: boolean } = {}, deadlineMs?: number): Promise<DomainRef> {
    return this.#caller.call(procedures.create, { dom, flags: flags([paused, 1]) }, deadlineMs);
  }

  suspend(dom: DomainRef, deadlineMs?: number): Promise<void> {
    return this.#caller.call(procedures.suspend, dom, deadlineMs);
  }

  resume(dom: DomainRef, deadlineMs?: number): Promise<void> {
    return this.#caller.call(procedures.resume, dom, deadlineMs);
  }

  /** Ends QEMU at once. */
  destroy(dom: DomainRef, deadlineMs?: number): Promise<void> {
    return this.#caller.call(procedures.destroy, { dom, flags: 0 }, deadlineMs);
  }

  /** Asks the guest to shut down; resolves before it has. */
  shutdown(dom: DomainRef, deadlineMs?: number): Promise<void> {
    return this.#caller.call(procedures.shutdown, { dom, flags: 0 }, deadlineMs);
  }

  reset(dom: DomainRef, deadlineMs?: number): Promise<void> {
    return this.#caller.call(procedures.reset, { dom, flags: 0 }, deadlineMs);
  }

  async state(dom: DomainRef, deadlineMs?: number): Promise<DomainState> {
    const { state, reason } = await this.#caller.call(procedures.state, { dom, flags: 0 }, deadlineMs);
    return { state: state as DomainRunState, reason };
  }

  isPersistent(dom: DomainRef, deadlineMs?: number): Promise<boolean> {
    return this.#caller.call(procedures.isPersistent, dom, deadlineMs);
  }

  setMetadata(dom: DomainRef, { uri, key, xml, live, config }: MetadataChange, deadlineMs?: number): Promise<void> {
    const type = metadataType.element;
    return this.#caller.call(
      procedures.setMetadata,
      { dom, type, xml, key, uri, flags: flags([live, 1], [config, 2]) },
      deadlineMs,
    );
  }

  /** The element of this namespace, or null if there is none. */
  async getMetadata(
    dom: DomainRef,
    { uri, live, config }: { uri: string; live?: boolean; config?: boolean },
    deadlineMs?: number,
  ): Promise<string | null> {
    const type = metadataType.element;
    try {
      return await this.#caller.call(
        procedures.getMetadata,
        { dom, type, uri, flags: flags([live, 1], [config, 2]) },
        deadlineMs,
      );
    } catch (error) {
      if (isLibvirtError(error, libvirtErrorCode.noDomainMetadata)) return null;
      throw error;
    }
  }

  /** `modify` is a mask of `deviceModify`. */
  updateDevice(dom: DomainRef, xml: string, modify: number, deadlineMs?: number): Promise<void> {
    return this.#caller.call(procedures.updateDevice, { dom, xml, flags: modify }, deadlineMs);
  }

  /** `disk` is the target's name or the source's path; `destXml` a `<disk>` element. */
  blockCopy(
    dom: DomainRef,
    disk: string,
    destXml: string,
    options: BlockCopyOptions = {},
    deadlineMs?: number,
  ): Promise<void> {
    const { shallow, reuseExternal, transientJob, synchronousWrites, bandwidthBytesPerSec } = options;
    return this.#caller.call(
      procedures.blockCopy,
      {
        dom,
        disk,
        destXml,
        parameters: bandwidthBytesPerSec === undefined ? [] : [{ field: 'bandwidth', value: bandwidthBytesPerSec }],
        flags: flags([shallow, 1], [reuseExternal, 2], [transientJob, 4], [synchronousWrites, 8]),
      },
      deadlineMs,
    );
  }

  /** Cancels the job, or with `pivot` makes the copy the disk's source. With `async` it resolves before that is so. */
  blockJobAbort(
    dom: DomainRef,
    disk: string,
    { pivot, async }: { pivot?: boolean; async?: boolean } = {},
    deadlineMs?: number,
  ): Promise<void> {
    return this.#caller.call(procedures.blockJobAbort, { dom, disk, flags: flags([async, 1], [pivot, 2]) }, deadlineMs);
  }

  /** The disk's block job as far as libvirt knows it, or null if it has none. */
  async blockJobInfo(dom: DomainRef, disk: string, deadlineMs?: number): Promise<BlockJobInfo | null> {
    const bandwidthInBytes = 1;
    const { found, ...info } = await this.#caller.call(
      procedures.blockJobInfo,
      { dom, disk, flags: bandwidthInBytes },
      deadlineMs,
    );
    return found ? info : null;
  }

  /**
   * Stops the domain and keeps its memory where the domain's next start finds it; takes as long as writing it takes. A domain that
   * runs will run again then, one that is paused will be paused.
   */
  managedSave(dom: DomainRef, deadlineMs?: number): Promise<void> {
    return this.#caller.call(procedures.managedSave, { dom, flags: 0 }, deadlineMs);
  }

  hasManagedSave(dom: DomainRef, deadlineMs?: number): Promise<boolean> {
    return this.#caller.call(procedures.hasManagedSave, { dom, flags: 0 }, deadlineMs);
  }

  /** Forgets what is saved, whether the domain runs or not. */
  managedSaveRemove(dom: DomainRef, deadlineMs?: number): Promise<void> {
    return this.#caller.call(procedures.managedSaveRemove, { dom, flags: 0 }, deadlineMs);
  }

  /** The XML in the managed save image; passwords only with `secure`. */
  managedSaveXml(dom: DomainRef, { secure }: { secure?: boolean } = {}, deadlineMs?: number): Promise<string> {
    return this.#caller.call(procedures.managedSaveXml, { dom, flags: flags([secure, 1]) }, deadlineMs);
  }

  /** Replaces the XML in the managed save image. */
  managedSaveDefineXml(dom: DomainRef, xml: string, deadlineMs?: number): Promise<void> {
    return this.#caller.call(procedures.managedSaveDefineXml, { dom, xml, flags: 0 }, deadlineMs);
  }

  /** Whether libvirt saves, dumps, snapshots or migrates the domain now. */
  async hasJob(dom: DomainRef, deadlineMs?: number): Promise<boolean> {
    const { type } = await this.#caller.call(procedures.jobInfo, dom, deadlineMs);
    return type === jobType.bounded || type === jobType.unbounded;
  }

  /** Whether libvirt migrates the domain to another host now. */
  async isLeaving(dom: DomainRef, deadlineMs?: number): Promise<boolean> {
    const { type, parameters } = await this.#caller.call(procedures.jobStats, { dom, flags: 0 }, deadlineMs);
    const operation = parameters.find(({ field }) => field === 'operation')?.value;
    return (type === jobType.bounded || type === jobType.unbounded) && operation === BigInt(jobOperation.migrationOut);
  }

  /** Gives up what libvirt does with the domain: a migration, save or dump. */
  abortJob(dom: DomainRef, deadlineMs?: number): Promise<void> {
    return this.#caller.call(procedures.abortJob, dom, deadlineMs);
  }

  /** How many bytes of the host's memory the running domain's QEMU has; null if libvirt can't tell. */
  async residentBytes(dom: DomainRef, deadlineMs?: number): Promise<number | null> {
    const stats = await this.#caller.call(procedures.memoryStats, { dom, maxStats: 32, flags: 0 }, deadlineMs);
    const kibibytes = stats.find(({ tag }) => tag === memoryStat.rss)?.value;
    return kibibytes === undefined ? null : kibibytes * 1024;
  }

  /** Stops the domain and keeps its memory in a file; takes as long as writing it takes. */
  save(dom: DomainRef, path: string, xml: string | null, deadlineMs?: number): Promise<void> {
    return this.#caller.call(procedures.save, { dom, path, xml, flags: 0 }, deadlineMs);
  }

  restore(path: string, xml: string | null, deadlineMs?: number): Promise<void> {
    return this.#caller.call(procedures.restore, { path, xml, flags: 0 }, deadlineMs);
  }

  /** Sends one QMP command as JSON, resolves to QEMU's answer as JSON, which may hold a QMP error. */
  qemuMonitorCommand(dom: DomainRef, command: string, deadlineMs?: number): Promise<string> {
    return this.#caller.call(procedures.monitorCommand, { dom, command, flags: 0 }, deadlineMs);
  }

  /** Rejects with `libvirtErrorCode.invalidSecret` for a secret that is private. */
  async secretValueByUuid(uuid: string, deadlineMs?: number): Promise<Buffer> {
    return this.#secretValue(await this.#caller.call(procedures.secretByUuid, uuid, deadlineMs), deadlineMs);
  }

  /** `usageType` is a value of `secretUsage`. */
  async secretValueByUsage(usageType: number, usageId: string, deadlineMs?: number): Promise<Buffer> {
    const secret = await this.#caller.call(procedures.secretByUsage, { type: usageType, id: usageId }, deadlineMs);
    return this.#secretValue(secret, deadlineMs);
  }

  /** Ends the connection; calls in flight are rejected with ConnectionLostError. */
  close(): Promise<void> {
    return this.#close();
  }

  #secretValue(secret: SecretRef, deadlineMs?: number): Promise<Buffer> {
    return this.#caller.call(procedures.secretValue, { secret, flags: 0 }, deadlineMs);
  }
}
