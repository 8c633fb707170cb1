import type { QmpEvent } from '../qmp/monitor.ts';
import { DiskMemory } from './disk-memory.ts';
import { damageReport, jobReport, resetDamage, stoppedDisk } from './evidence.ts';
import type { Side } from './model.ts';
import { verifyStopped } from './verification.ts';
import type { DiskObservation } from './observation.ts';

/** libvirt kills a QEMU that has not ended 10 s after it was told to (util/virprocess.c); well before that it ended by itself. */
const killedAfterMs = 8_000;

/** What QEMU's events and our own attempts told of a running domain, and neither its graph nor its record holds. */
export class DomainMemory {
  readonly #disks = new Map<string, DiskMemory>();
  /** The disks that stopped the guest since it last ran; empty when no event told, and the devices' io-status has to. */
  readonly #failing = new Set<string>();
  /** The guest is paused, as far as is known. */
  isStopped = false;
  /** When the guest itself shut QEMU down. */
  #shutdownAtMs: number | null = null;

  of(dev: string): DiskMemory {
    const known = this.#disks.get(dev);
    if (known !== undefined) return known;
    const memory = new DiskMemory();
    this.#disks.set(dev, memory);
    return memory;
  }

  all(): Iterable<DiskMemory> {
    return this.#disks.values();
  }

  get failing(): ReadonlySet<string> {
    return this.#failing;
  }

  /** Verifies that are under way can't go on. Answers whether there were any. */
  stopVerifies(why: string): boolean {
    const running = [...this.#disks].flatMap(([dev, { verification }]) =>
      verification ? [{ dev, verification }] : [],
    );
    for (const { dev, verification } of running) verification.stop(verifyStopped(dev, why));
    return running.length > 0;
  }

  /** Another QEMU runs now. */
  begin(): void {
    this.#disks.clear();
    this.isStopped = false;
    this.#failing.clear();
    this.#shutdownAtMs = null;
  }

  /** `disks` as last seen; `lost` is told of a copy that was not known to fail. */
  learn(event: QmpEvent, disks: DiskObservation[], lost: (dev: string, side: Side, why: string) => void): void {
    if (event.event === 'RESUME') {
      this.isStopped = false;
      this.#failing.clear();
      for (const memory of this.all()) {
        memory.ioErrorIsPast = false;
        memory.noSpace = false;
      }
    }
    // QEMU stops only when every request has ended.
    if (event.event === 'STOP') {
      this.isStopped = true;
      for (const memory of this.all()) memory.hang = null;
    }
    // A device that is plugged in next counts nothing of what the guest wrote through this one.
    if (event.event === 'DEVICE_DELETED') for (const memory of this.all()) memory.atStop = null;
    if (event.event === 'SHUTDOWN' && event.data['guest'] === true) this.#shutdownAtMs = Date.now();
    // libvirt makes a reboot of a power-off: the same QEMU goes on.
    if (event.event === 'RESET' || event.event === 'RESUME') this.#shutdownAtMs = null;
    const stops = event.event === 'BLOCK_IO_ERROR' && event.data['action'] === 'stop';
    const stopped = stops ? stoppedDisk(event, disks) : null;
    if (stopped !== null) {
      this.#failing.add(stopped);
      this.of(stopped).noSpace = event.data['nospace'] === true;
    }
    for (const disk of disks) this.#learnOfDisk(event, disk, lost);
  }

  #learnOfDisk(event: QmpEvent, disk: DiskObservation, lost: (dev: string, side: Side, why: string) => void): void {
    const { dev } = disk.record;
    const memory = this.of(dev);
    const isPair = disk.graph?.layout === 'pair';
    // What is under way when a guest is reset ends, on both copies; what waits for a resume is dropped.
    const drops = disk.withoutStopPolicy === null || this.#failing.has(dev);
    if (event.event === 'RESET' && isPair && drops && memory.health.primary.is !== 'failed')
      memory.health.mirror = resetDamage;
    const damage = memory.isPast(event.timeMs) ? null : damageReport(event, disk);
    if (damage !== null) {
      const isFull = damage.side === 'primary' && damage.health.noSpace;
      if (!memory.isLost(damage.side) && !isFull) lost(dev, damage.side, damage.health.why);
      memory.learn(damage.side, damage.health);
    }
    const job = jobReport(event, disk);
    if (job === null) return;
    if (job.ok) {
      memory.deltaPasses += 1;
      return;
    }
    memory.failed(job.why);
    if (job.side !== null) memory.learn(job.side, { is: 'failed', why: job.why, noSpace: false });
  }

  /** Evidence that came while a plan was carried out, of a disk that it did not move. Disks that failed otherwise are tried again. */
  requireNoFailedPair(disks: DiskObservation[]): void {
    for (const { record, graph, withoutStopPolicy } of disks) {
      // Nobody waits for it.
      if (withoutStopPolicy !== null) continue;
      const memory = this.of(record.dev);
      const failed = this.#failing.has(record.dev) || Object.values(memory.health).some(({ is }) => is === 'failed');
      if (memory.ioErrorIsPast || !failed) continue;
      if (graph?.layout === 'pair') throw new Error(`the pair of ${record.dev} failed meanwhile`);
      memory.triedAgain();
    }
  }

  /**
   * How QEMU ended: cleanly if the guest itself shut down, and libvirt did not lose patience and kill QEMU in the middle of a
   * write. `pairs` are the disks of which both copies had every write to the end, and none failed; of the `open` QEMU had the mirror open.
   */
  stopped(disks: DiskObservation[]): { clean: boolean; pairs: string[]; open: string[] } {
    const clean = this.#shutdownAtMs !== null && Date.now() - this.#shutdownAtMs <= killedAfterMs;
    const pairs = disks.flatMap(({ record: { dev }, graph }) =>
      graph?.layout === 'pair' &&
      graph.pair?.inSync === true &&
      !this.of(dev).isLost('primary') &&
      !this.of(dev).isLost('mirror')
        ? [dev]
        : [],
    );
    const open = disks.flatMap(({ record: { dev }, graph }) => (graph?.mirrorOpen === true ? [dev] : []));
    return { clean, pairs, open };
  }
}
