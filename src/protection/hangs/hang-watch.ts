import { errorText } from '../../errors.ts';
import type { Backends } from '../../health/backends.ts';
import type { Prober } from '../../health/prober.ts';
import type { Log } from '../../log.ts';
import type { Side } from '../model.ts';
import type { Protector } from '../protector.ts';
import { DomainWatch } from './domain-watch.ts';

export interface HangWatchParts {
  protectors: () => Protector[];
  prober: Prober;
  backends: Backends;
  log: Log;
  /** How long a guest waits for a copy that does not answer. */
  patienceMs: () => number;
  /** A guest waits for a copy that QEMU can't let go of, and the other copy answers. */
  helpless: (protector: Protector, dev: string, side: Side) => Promise<void>;
}

/** Who is due is asked for so often. */
const tickMs = 500;

/** A domain is looked at so often while something may be amiss, and at least so often while nothing is. */
const suspiciousMs = 1_000;
const mostIdleMs = 30_000;

/**
 * Watches every protected domain for requests that don't end (docs/decisions/hangs.md).
 *
 * INVARIANTS
 * - A domain is looked at by one look at a time, and none waits for another domain's.
 * - A look only asks QEMU what it answers from memory. The one thing that is done to it is a yank, which is what a connection that
 *   breaks would be; all that follows from there goes through the domain's queue.
 */
export class HangWatch {
  readonly #parts: HangWatchParts;
  readonly #domains = new Map<string, { watch: DomainWatch; dueAtMs: number; looking: boolean }>();
  readonly #timer: NodeJS.Timeout;

  constructor(parts: HangWatchParts) {
    this.#parts = parts;
    this.#timer = setInterval(() => this.#tick(), tickMs);
    this.#timer.unref();
  }

  /** Something may be amiss: the domain is looked at soon. */
  suspect(uuid: string): void {
    const domain = this.#domains.get(uuid);
    if (domain !== undefined) domain.dueAtMs = Math.min(domain.dueAtMs, Date.now() + suspiciousMs);
  }

  close(): void {
    clearInterval(this.#timer);
  }

  get #idleMs(): number {
    return Math.min(mostIdleMs, 6 * this.#parts.patienceMs());
  }

  #tick(): void {
    const now = Date.now();
    const running = this.#parts.protectors().filter(({ live }) => live !== null);
    for (const uuid of this.#domains.keys())
      if (!running.some(({ record }) => record.uuid === uuid)) this.#domains.delete(uuid);
    for (const protector of running) {
      const { uuid } = protector.record;
      const known = this.#domains.get(uuid);
      if (known === undefined)
        // Domains that were found together are not looked at together.
        this.#domains.set(uuid, {
          watch: new DomainWatch(this.#parts, protector),
          dueAtMs: now + Math.random() * this.#idleMs,
          looking: false,
        });
      else if (!known.looking && known.dueAtMs <= now) void this.#look(protector, known);
    }
  }

  async #look(protector: Protector, domain: { watch: DomainWatch; dueAtMs: number; looking: boolean }): Promise<void> {
    domain.looking = true;
    domain.dueAtMs = Infinity;
    try {
      const amiss = await domain.watch.look();
      domain.dueAtMs = Math.min(domain.dueAtMs, Date.now() + (amiss ? suspiciousMs : this.#idleMs));
    } catch (error) {
      domain.dueAtMs = Date.now() + this.#idleMs;
      this.#parts.log.debug('could not see whether a domain hangs', {
        domain: protector.record.name,
        error: errorText(error),
      });
    }
    domain.looking = false;
  }
}
