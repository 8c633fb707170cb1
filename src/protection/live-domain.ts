import { readFileSync } from 'node:fs';
import { imageToDiskXml } from '../domain/disk-image.ts';
import { parseDomain, type DomainDisk } from '../domain/domain.ts';
import { withDiskImage } from '../domain/edit.ts';
import type { Image } from '../domain/image.ts';
import { statusToXml, STATUS_KEY, STATUS_URI } from '../domain/live-status.ts';
import { hasQuorum } from '../graph/engine.ts';
import type { LibvirtClient } from '../libvirt/client.ts';
import { qemuPid } from '../libvirt/pid-file.ts';
import type { LibvirtSession } from '../libvirt/session.ts';
import type { DomainRef } from '../libvirt/types.ts';
import { Monitor, type QmpEvent } from '../qmp/monitor.ts';
import type { Recipient } from '../storage/descriptors.ts';
import type { DiskStatus } from './model.ts';
import { MonitorGate } from './monitor-gate.ts';
import type { RunView } from './observation.ts';
import type { Relays } from './relays/relays.ts';

const bootId = readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();

/** The persistent XML is behind the record in authority: the guest does not wait longer for it. */
const defineDeadlineMs = 3_000;

/** One running QEMU as libvirt gives access to it, with what libvirt believes about its disks. */
export class LiveDomain {
  readonly ref: DomainRef;
  readonly monitor: Monitor;
  /** Which QEMU this is: libvirt numbers its domains anew after each boot of the host. */
  readonly instance: string;
  /** Whom descriptors are handed to. */
  readonly recipient: Recipient;
  readonly relays: Relays;
  readonly #client: LibvirtClient;
  readonly #gate: MonitorGate;
  readonly #listeners = new Set<(event: QmpEvent) => void>();
  /** Since when the guest has stood still and not because somebody wants it to, in ms; Infinity while it runs. */
  #stillSinceMs = Infinity;
  #statusShown = false;
  #hasQuorum: Promise<boolean> | null = null;
  #disks: Promise<DomainDisk[]> | null = null;
  #persistentDisks: Promise<DomainDisk[]> | null = null;

  /** `silenceChanged`: QEMU's monitor does not answer, or answers again. */
  constructor(session: LibvirtSession, ref: DomainRef, relays: Relays, silenceChanged: () => void) {
    this.ref = ref;
    this.relays = relays;
    this.instance = `${bootId}/${ref.id}`;
    this.recipient = { libvirtSocket: session.socketPath, domainId: ref.id };
    this.#client = session.clientFor(() => this.#stillSinceMs);
    this.#gate = new MonitorGate(
      (request, deadlineMs) => this.#client.qemuMonitorCommand(ref, request, deadlineMs),
      silenceChanged,
    );
    this.monitor = new Monitor({
      send: (request) => this.#gate.send(request),
      onEvent: (listener) => {
        this.#listeners.add(listener);
        return () => this.#listeners.delete(listener);
      },
    });
  }

  /** QEMU's process; null if libvirt notes none. */
  get pid(): number | null {
    return qemuPid(this.ref.name);
  }

  /** Hands on an event that libvirt sent for this domain. */
  deliver(event: QmpEvent): void {
    if (event.event === 'STOP') this.#stillSinceMs = event.timeMs;
    if (event.event === 'RESUME') this.#stillSinceMs = Infinity;
    for (const listener of [...this.#listeners]) listener(event);
  }

  /** The process through which QEMU reaches a disk's mirror; null if it does so by itself. */
  relayPid(dev: string): number | null {
    return this.relays.pidOf(this.ref, dev);
  }

  /** What a look found: nobody waits for a guest that somebody suspended, and events may not have been heard. */
  seen(run: RunView): void {
    const waits = run === 'surgery' || run === 'io-error';
    this.#stillSinceMs = waits ? Math.min(this.#stillSinceMs, Date.now()) : Infinity;
  }

  /** Asked once: a QEMU does not change. */
  hasQuorum(): Promise<boolean> {
    this.#hasQuorum ??= hasQuorum(this.monitor);
    this.#hasQuorum.catch(() => (this.#hasQuorum = null));
    return this.#hasQuorum;
  }

  /** libvirt's live view of the disks; read again after `forgetDisks`. */
  disks(): Promise<DomainDisk[]> {
    this.#disks ??= this.#client.domainXml(this.ref).then((xml) => parseDomain(xml).disks);
    this.#disks.catch(() => this.forgetDisks());
    return this.#disks;
  }

  forgetDisks(): void {
    this.#disks = null;
  }

  /** What the next start would use; none for a transient domain. */
  persistentDisks(): Promise<DomainDisk[]> {
    this.#persistentDisks ??= this.#client
      .isPersistent(this.ref)
      .then((persistent) => (persistent ? this.#client.domainXml(this.ref, { inactive: true }) : null))
      .then((xml) => (xml === null ? [] : parseDomain(xml).disks));
    this.#persistentDisks.catch(() => this.forgetPersistentDisks());
    return this.#persistentDisks;
  }

  forgetPersistentDisks(): void {
    this.#persistentDisks = null;
  }

  /** Since when QEMU's monitor has not answered: ISO time; null if it does. */
  get silentSince(): string | null {
    return this.#gate.silentSince;
  }

  /** libvirt's reason for a pause; see pausedReason. */
  async pausedReason(): Promise<number> {
    return (await this.#client.state(this.ref)).reason;
  }

  /**
   * Makes the persistent XML name another image. The XML is read with its secrets, which a definition without them would
   * erase; a domain that is not persistent is left alone, because defining it would make it so.
   */
  async definePersistentImage(dev: string, image: Image): Promise<void> {
    if (!(await this.#client.isPersistent(this.ref, defineDeadlineMs))) return;
    const xml = await this.#client.domainXml(this.ref, { inactive: true, secure: true }, defineDeadlineMs);
    await this.#client.defineXml(withDiskImage(xml, dev, image), defineDeadlineMs);
    this.forgetPersistentDisks();
  }

  /** libvirt migrates the domain to another host. */
  isLeaving(): Promise<boolean> {
    return this.#client.isLeaving(this.ref);
  }

  cancelMigration(): Promise<void> {
    return this.#client.abortJob(this.ref);
  }

  /** Starts libvirt's copy job onto an existing image; 0 is unlimited. */
  async startCopy(dev: string, to: Image, maxBytesPerS: number, deadlineMs?: number): Promise<void> {
    const options = {
      reuseExternal: true,
      transientJob: true,
      synchronousWrites: true,
      ...(maxBytesPerS > 0 && { bandwidthBytesPerSec: maxBytesPerS }),
    };
    await this.#client.blockCopy(this.ref, dev, imageToDiskXml(to), options, deadlineMs);
  }

  /** Ends libvirt's copy job, on the new image with `pivot`, else on the old one. */
  async endCopy(dev: string, { pivot }: { pivot: boolean }): Promise<void> {
    await this.#client.blockJobAbort(this.ref, dev, { pivot });
    this.forgetDisks();
  }

  /** Writes these disks' states into the live metadata, where any client of libvirt sees them; without disks, takes it away. */
  async showStatus(disks: DiskStatus[]): Promise<void> {
    this.#statusShown = false;
    const shown = disks.map(({ dev, state, since, runningOn, mirror }) => ({
      dev,
      state,
      since,
      runningOn,
      mirror: mirror.source,
    }));
    const xml = shown.length === 0 ? null : statusToXml({ instance: this.instance, disks: shown });
    await this.#client.setMetadata(this.ref, { uri: STATUS_URI, key: STATUS_KEY, xml, live: true, config: false });
    this.#statusShown = true;
  }

  /** The live metadata say what was last to be shown. */
  get statusShown(): boolean {
    return this.#statusShown;
  }
}
