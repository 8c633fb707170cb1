import { errorText } from '../../errors.ts';
import { domainRunState, shutoffReason } from '../../libvirt/constants.ts';
import { isLibvirtError, libvirtErrorCode } from '../../libvirt/errors.ts';
import type { LibvirtSession } from '../../libvirt/session.ts';
import type { Log } from '../../log.ts';

const pollMs = 500;

/** A start that takes longer has an administrator looking at it. */
const watchMs = 5 * 60_000;

/**
 * While another program's hook holds the domain, libvirt does not answer, and a call that was given up would keep one of its workers all
 * the same: one call waits for as long as the start is watched.
 */
const stateDeadlineMs = watchMs;

/** A start that failed before the guest ran. */
export interface FailedStart {
  uuid: string;
  /** Asks libvirt whether it is still so: nobody tried again, started or ended the domain. */
  stillSo(): Promise<boolean>;
}

export interface StartWatchParts {
  session: LibvirtSession;
  log: Log;
  failed: (start: FailedStart) => Promise<void>;
  /** The guest may have run, and nobody saw it. */
  ended: (uuid: string) => Promise<void>;
}

/**
 * Watches what becomes of the starts that the hook let pass. libvirt sends no event of a start that failed; then the domain is shut
 * off, for the reason that its start failed. It gives the same reason when another hook ended the domain that had just begun to run,
 * but then it has told that it was resumed (both tried on 9.0).
 *
 * INVARIANT: whatever is heard of a domain ends the watching of the start before it; of two starts only the later one is watched.
 */
export class StartWatch {
  readonly #parts: StartWatchParts;
  readonly #awaited = new Map<string, symbol>();
  /** Domains that are restored or migrated here: their next `prepare` is no start from the disks. */
  readonly #incoming = new Set<string>();
  #closed = false;

  constructor(parts: StartWatchParts) {
    this.#parts = parts;
  }

  /** The hook let this operation pass; libvirt goes on with it when the hook has ended. */
  passed(operation: string, uuid: string): void {
    if (operation !== 'prepare') {
      this.#incoming.add(uuid);
      return;
    }
    this.settle(uuid);
    if (this.#incoming.delete(uuid)) return;
    const attempt = Symbol(uuid);
    this.#awaited.set(uuid, attempt);
    this.#watch(uuid, attempt).catch((error: unknown) =>
      this.#parts.log.warn('a start that failed could not be followed up', { uuid, error: errorText(error) }),
    );
  }

  /** Something was heard of the domain: it runs, or somebody ended it. */
  settle(uuid: string): void {
    this.#awaited.delete(uuid);
  }

  /** What becomes of its start is not known yet. */
  isAwaited(uuid: string): boolean {
    return this.#awaited.has(uuid);
  }

  close(): void {
    this.#closed = true;
    this.#awaited.clear();
  }

  async #watch(uuid: string, attempt: symbol): Promise<void> {
    const isAwaited = (): boolean => this.#awaited.get(uuid) === attempt;
    for (const endMs = Date.now() + watchMs; Date.now() < endMs;) {
      await new Promise((resolve) => setTimeout(resolve, pollMs).unref());
      if (this.#closed || !isAwaited()) return;
      const reason = await this.#offFor(uuid);
      if (reason === null) continue;
      if (!isAwaited()) break;
      const { failed } = shutoffReason;
      if (reason !== failed) await this.#parts.ended(uuid);
      else
        await this.#parts.failed({ uuid, stillSo: async () => (await this.#offFor(uuid)) === failed && isAwaited() });
      break;
    }
    if (isAwaited()) this.settle(uuid);
  }

  /** Why it is shut off (shutoffReason); null if it is not. A libvirt that can't be asked now is asked again; a domain that is gone was never one to start. */
  async #offFor(uuid: string): Promise<number | null> {
    try {
      const { state, reason } = await this.#parts.session.client.state({ name: '', uuid, id: -1 }, stateDeadlineMs);
      return state === domainRunState.shutoff ? reason : null;
    } catch (error) {
      if (isLibvirtError(error, libvirtErrorCode.noDomain)) this.settle(uuid);
      return null;
    }
  }
}
