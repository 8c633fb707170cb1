import type { Log } from '../log.ts';
import type { QmpEvent } from '../qmp/monitor.ts';
import type { EventLog } from '../store/event-log.ts';
import type { EventName, ProtectionEvent } from './model.ts';
import type { DiskRecord } from './record.ts';

/** Tells what happens to one domain: in the event log, for `virt-cdp events`, and in the agent's log. */
export class Announcer {
  readonly #events: EventLog<ProtectionEvent>;
  readonly #log: Log;
  readonly #domain: () => string;
  #stoppedAtMs: number | null = null;
  /** How long the guest was paused, as QEMU's own events tell, since a change of state was last told. */
  #pausedMs: number | null = null;

  /** `domain` is its name, which may change. */
  constructor(events: EventLog<ProtectionEvent>, log: Log, domain: () => string) {
    this.#events = events;
    this.#log = log;
    this.#domain = domain;
  }

  note(event: EventName, disk: string | null, detail: Record<string, unknown>): void {
    this.#tell({ disk, event, from: null, to: null, detail });
  }

  /** Tells which disks' states changed, and how long the guest was paused for it. */
  states(before: DiskRecord[], after: DiskRecord[]): void {
    for (const { dev, state, reason } of after) {
      const from = before.find((disk) => disk.dev === dev)?.state ?? null;
      if (from === state) continue;
      const event = state === 'syncing' ? 'resync-started' : state === 'rebuilding' ? 'rebuild-started' : state;
      const detail = {
        ...(reason !== null && { reason }),
        ...(this.#pausedMs !== null && { pausedMs: this.#pausedMs }),
      };
      this.#tell({ disk: dev, event, from, to: state, detail });
    }
    this.#pausedMs = null;
  }

  /** Measures pauses by QEMU's own clock. */
  heard({ event, timeMs }: QmpEvent): void {
    if (event === 'STOP') this.#stoppedAtMs = timeMs;
    if (event !== 'RESUME' || this.#stoppedAtMs === null) return;
    this.#pausedMs = Math.round(timeMs - this.#stoppedAtMs);
    this.#stoppedAtMs = null;
  }

  #tell(event: Omit<ProtectionEvent, 'seq' | 'time' | 'domain'>): void {
    this.#events.append({ time: new Date().toISOString(), domain: this.#domain(), ...event });
    const { detail, ...rest } = event;
    this.#log.info(event.event, { domain: this.#domain(), ...rest, ...detail });
  }
}
