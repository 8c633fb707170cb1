import { unpaced, type Pace } from '../sync/pace.ts';
import type { Side } from './model.ts';
import type { GoneFile, Hang, Health, Identity } from './observation.ts';
import type { DiskRecord } from './record.ts';
import type { Verification } from './verification.ts';

const mostRestMs = 10 * 60_000;

const noRest = { untilMs: 0, lastMs: 0 };

const firstRetryMs = 500;
const lastRetryMs = 30_000;

/** QEMU holds an event back for a second; a busy host may take longer to hand it on. */
const longestHeldMs = 10_000;

/** What is known of a disk that neither the graph nor the record holds. Losing it, in a crash, costs time but no data. */
export class DiskMemory {
  health: Record<Side, Health> = { primary: { is: 'unknown' }, mirror: { is: 'unknown' } };
  /** When a copy was last known to answer or fail. */
  reachable: Record<Side, boolean | null> = { primary: null, mirror: null };
  /** QEMU's connection to the mirror of a pair is another than at first. */
  reconnected = false;
  copyFailed: string | null = null;
  /** Since the guest last ran the disk was moved off the nodes whose I/O had stopped it. */
  ioErrorIsPast = false;
  /** The I/O that stopped the guest found no space. */
  noSpace = false;
  /** What is known of its copies, if the guest may not have written since QEMU began; used up by the first try. */
  atStop: Identity | null = null;
  primaryGone: GoneFile | null = null;
  hang: Hang | null = null;
  /** Why the domain is not started anew for it, as was told last. */
  noRestart: string | null = null;
  /** What the copy in use lies on does not answer. */
  silent: Record<Side, boolean> = { primary: false, mirror: false };
  /** QEMU was told to fail whatever is asked of the copy until it is opened anew. */
  yanked: Record<Side, boolean> = { primary: false, mirror: false };
  /** It was found other than QEMU had closed it. */
  touched: Record<Side, boolean> = { primary: false, mirror: false };
  deltaPasses = 0;
  /** What is weak about the storage of the copies. */
  storageRemark: string | undefined;
  /** How fast a sync may go. */
  pace: Pace = unpaced;
  /** The verify that is under way. */
  verification: Verification | null = null;
  /** Why the last attempt to get on failed; null after a success. */
  trouble: string | null = null;
  /** The device's count of finished flushes when an epoch had begun. */
  readonly epochFlushes = new Map<string, number>();
  /** Until when a copy is not opened again, and for how long that was. */
  readonly #rests: Record<Side, { untilMs: number; lastMs: number }> = { primary: noRest, mirror: noRest };
  #failures = 0;
  #retryAtMs = 0;
  /** When the disk was last put on other nodes, as performance.now() has it. */
  #movedAtMs = -Infinity;

  /** Waits longer after each failure. */
  failed(why: string): void {
    this.trouble = why;
    this.#delay();
  }

  succeeded(): void {
    this.trouble = null;
    this.copyFailed = null;
    this.#failures = 0;
    this.#retryAtMs = 0;
  }

  /** Somebody wants it tried now. */
  tryNow(): void {
    this.succeeded();
    this.#rests.primary = noRest;
    this.#rests.mirror = noRest;
  }

  /** It answers others and kept QEMU waiting, as it may again: it is left alone for so long, and twice as long each time that comes soon. */
  letRest(side: Side, firstMs: number): void {
    const { untilMs, lastMs: formerMs } = this.#rests[side];
    const comesSoon = Date.now() - untilMs < mostRestMs;
    const lastMs = Math.min(mostRestMs, comesSoon ? Math.max(firstMs, 2 * formerMs) : firstMs);
    this.#rests[side] = { untilMs: Date.now() + lastMs, lastMs };
  }

  /** Milliseconds; 0 if it may be opened. */
  restMs(side: Side): number {
    return Math.max(0, this.#rests[side].untilMs - Date.now());
  }

  /** The guest goes on after an I/O error: if that fails again, the copy is asked again, and later each time. */
  triedAgain(): void {
    for (const side of ['primary', 'mirror'] as const)
      if (this.health[side].is === 'answering') this.health[side] = { is: 'unknown' };
    this.#delay();
  }

  /** Milliseconds until the next attempt; 0 if it may be made now. */
  get retryInMs(): number {
    return Math.max(0, this.#retryAtMs - Date.now());
  }

  /** It is known to have failed, or to have another connection than at first: what tells of it afterwards is no news. */
  isLost(side: Side): boolean {
    return this.health[side].is === 'failed' || (side === 'mirror' && this.reconnected);
  }

  /**
   * What happened then happened to nodes that the disk has left. QEMU holds events back to tell one a second of each node
   * (monitor/monitor.c: monitor_qapi_event_conf), with the time of the event itself. Ages are compared, because the host's clock may be
   * set between the two; what seems older than anything that is held back was told by another clock.
   */
  isPast(timeMs: number): boolean {
    const ageMs = Date.now() - timeMs;
    return ageMs < longestHeldMs && ageMs > performance.now() - this.#movedAtMs;
  }

  /** The guest waits for copies that don't answer, or waits no more: null. */
  hangs(hang: Hang | null): void {
    const side = (hang ?? this.hang)?.side;
    for (const copy of ['primary', 'mirror'] as const)
      if (side === copy || side === 'both') this.reachable[copy] = hang === null;
    this.hang = hang;
    if (hang === null) this.noRestart = null;
  }

  /** A copy is in use again, and what was wrong with it before is no more. */
  opened(side: Side): void {
    this.learn(side, { is: 'answering' });
    if (side === 'mirror') this.reconnected = false;
    this.yanked[side] = false;
    this.touched[side] = false;
    this.trouble = null;
    this.deltaPasses = 0;
  }

  /** Whatever waits for the copy might wait for ever. */
  isSilent(side: Side): boolean {
    return this.silent[side] && !this.yanked[side] && this.health[side].is !== 'failed';
  }

  closed(side: Side): void {
    this.health[side] = { is: 'unknown' };
    this.yanked[side] = false;
  }

  learn(side: Side, health: Health): void {
    this.health[side] = health;
    if (health.is !== 'unknown') this.reachable[side] = health.is === 'answering' || health.noSpace;
  }

  /** The disk's record with what is known of its copies' being reachable. */
  reached(disk: DiskRecord): DiskRecord {
    const { primary, mirror } = disk;
    return {
      ...disk,
      primary: { ...primary, reachable: this.reachable.primary ?? primary.reachable },
      mirror: { ...mirror, reachable: this.reachable.mirror ?? mirror.reachable },
    };
  }

  /** The disk is on other nodes since then (performance.now()): what was known of the former ones, and that their I/O stopped the guest, is past. */
  movedOn(atMs: number): void {
    this.health = { primary: { is: 'unknown' }, mirror: { is: 'unknown' } };
    this.ioErrorIsPast = true;
    this.#movedAtMs = atMs;
  }

  /** The disk was unplugged; a device that is plugged in later has not counted the writes of before. */
  unplugged(): void {
    this.health = { primary: { is: 'unknown' }, mirror: { is: 'unknown' } };
    this.atStop = null;
    this.trouble = null;
  }

  #delay(): void {
    this.#retryAtMs = Date.now() + Math.min(lastRetryMs, firstRetryMs * 2 ** this.#failures);
    this.#failures += 1;
  }
}
