/**
 * A client that connects again by itself. Events come over a connection of their own; commands go over up to six
 * others, so that neither a flood of answers nor a hung domain holds up an event.
 *
 *   connecting ──► connected ──► waiting ──► connecting ...        any ──► closed
 *
 * INVARIANTS
 * - `connected` is entered only when every subscription is registered: what happens after `onConnected` is not missed.
 *   Events may come a little before it.
 * - What happened while not connected is lost; whoever listens to `onConnected` must look at the world again.
 * - `onConnected` and `onDisconnected` alternate, in this order.
 */
import { once } from 'node:events';
import { setTimeout as delay } from 'node:timers/promises';
import { CallPool } from './call-pool.ts';
import { LibvirtClient } from './client.ts';
import type { Connection } from './connection.ts';
import { ConnectionLostError } from './errors.ts';
import { EventHub } from './event-hub.ts';
import type { DomainEvents } from './event-hub.ts';
import { callEach } from './listeners.ts';
import type { Unsubscribe } from './listeners.ts';
import { openConnection } from './opening.ts';
import type { OpeningOptions } from './opening.ts';
import type { Caller } from './procedures.ts';

export type SessionState = 'connecting' | 'connected' | 'waiting' | 'closed';

export interface SessionOptions extends OpeningOptions {
  /** Told of every change of state, and of why a connection failed. */
  log?: (message: string, detail: Record<string, unknown>) => void;
  /** The pause after a first failure; it doubles with each further one up to `maxBackoffMs`. Default 100 ms. */
  minBackoffMs?: number;
  /** Default 5 s. */
  maxBackoffMs?: number;
}

const maxCommandConnections = 6;

export class LibvirtSession {
  /** Commands. While the session is not connected they are rejected at once with a ConnectionLostError. */
  readonly client: LibvirtClient;
  /** Subscriptions last until they are ended, over any number of connections. */
  readonly events: DomainEvents;

  readonly #options: SessionOptions;
  readonly #hub = new EventHub({ outlivesConnection: true });
  readonly #pool: CallPool;
  readonly #closing = new AbortController();
  readonly #connectedListeners = new Set<() => void>();
  readonly #disconnectedListeners = new Set<() => void>();
  readonly #ended: Promise<void>;
  #state: SessionState = 'connecting';

  /** Returns at once, whether or not there is a daemon. */
  static start(options: SessionOptions): LibvirtSession {
    return new LibvirtSession(options);
  }

  private constructor(options: SessionOptions) {
    this.#options = options;
    this.#pool = new CallPool({
      open: (signal) => openConnection({ ...options, signal }),
      maxConnections: maxCommandConnections,
    });
    this.events = this.#hub;
    this.client = this.clientFor(() => Infinity);
    this.#ended = this.#run();
  }

  /** As `client`, for a guest that may stand still, since this time in ms: of the calls that wait, those for who has for longest go first. */
  clientFor(stillSinceMs: () => number): LibvirtClient {
    const whileConnected: Caller = {
      call: (procedure, args, deadlineMs) =>
        this.#state === 'connected'
          ? this.#pool.call(procedure, args, deadlineMs, stillSinceMs())
          : Promise.reject(new ConnectionLostError(`${procedure.name}: no connection to libvirt`)),
    };
    return new LibvirtClient(whileConnected, this.#hub, () => this.close());
  }

  get state(): SessionState {
    return this.#state;
  }

  get socketPath(): string {
    return this.#options.socketPath;
  }

  /** Calls past their deadline that the daemon still works on; each holds one of its worker threads. */
  get overdueCalls(): number {
    return this.#pool.overdue;
  }

  /** Called at every connection, the present one included. */
  onConnected(listener: () => void): Unsubscribe {
    this.#connectedListeners.add(listener);
    if (this.#state === 'connected') {
      queueMicrotask(() => {
        if (this.#state === 'connected' && this.#connectedListeners.has(listener)) listener();
      });
    }
    return () => void this.#connectedListeners.delete(listener);
  }

  /** Called whenever a connection that `onConnected` told of is lost, by `close()` too. */
  onDisconnected(listener: () => void): Unsubscribe {
    this.#disconnectedListeners.add(listener);
    return () => void this.#disconnectedListeners.delete(listener);
  }

  /** Ends every connection and every call. Resolves when no socket and no timer is left. */
  async close(): Promise<void> {
    this.#closing.abort();
    await this.#ended;
  }

  async #run(): Promise<void> {
    const { minBackoffMs = 100, maxBackoffMs = 5000 } = this.#options;
    const { signal } = this.#closing;
    for (let failures = 0; !signal.aborted; failures++) {
      this.#become('connecting', {});
      await this.#liveOneConnection(() => (failures = 0));
      await delay(Math.min(minBackoffMs * 2 ** failures, maxBackoffMs), undefined, { signal }).catch(() => undefined);
    }
    this.#become('closed', {});
  }

  /** Connects and stays until the connection ends. */
  async #liveOneConnection(onUp: () => void): Promise<void> {
    const { signal } = this.#closing;
    let connection: Connection | undefined;
    const end = (): void => void connection?.close();
    signal.addEventListener('abort', end);
    try {
      connection = await openConnection({ ...this.#options, signal });
      const lost = once(connection, 'lost');
      await this.#hub.attach(connection);
      if (connection.lost === null) {
        onUp();
        this.#become('connected', {});
        await lost;
      }
      this.#become('waiting', { error: connection.lost });
    } catch (error) {
      this.#become('waiting', { error });
    } finally {
      signal.removeEventListener('abort', end);
      await connection?.close();
      await this.#pool.empty(connection?.lost ?? new ConnectionLostError('no connection to libvirt'));
    }
  }

  #become(state: SessionState, detail: Record<string, unknown>): void {
    const from = this.#state;
    this.#state = state;
    this.#options.log?.(`libvirt ${state}`, { from, ...detail });
    if (state === 'connected') callEach(this.#connectedListeners, undefined);
    if (from === 'connected') callEach(this.#disconnectedListeners, undefined);
  }
}
