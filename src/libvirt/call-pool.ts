/**
 * Calls over several connections, so that one that hangs does not hold up another.
 *
 * INVARIANTS
 * - A connection never has more than `callsPerConnection` unanswered calls: past five (max_client_requests) the daemon
 *   stops reading, keepalives included.
 * - A call is in `#queue` or with one connection, never in both; its deadline runs from the moment it is made.
 * - A further connection is opened only when those that are open are full.
 * - Of the calls in `#queue`, those for guests that stand still are first, by how long they have.
 */
import type { Connection } from './connection.ts';
import type { ConnectionLostError } from './errors.ts';
import { CallTimeoutError } from './errors.ts';
import { defaultDeadlineMs } from './procedures.ts';
import type { Caller, Procedure } from './procedures.ts';

const callsPerConnection = 4;

export interface CallPoolOptions {
  /** The signal is given when the connection is no longer wanted. */
  open: (signal: AbortSignal) => Promise<Connection>;
  maxConnections: number;
}

interface QueuedCall {
  stillSinceMs: number;
  send: (connection: Connection) => void;
  fail: (error: Error) => void;
}

export class CallPool implements Caller {
  readonly #open: (signal: AbortSignal) => Promise<Connection>;
  readonly #maxConnections: number;
  readonly #connections = new Set<Connection>();
  #queue: QueuedCall[] = [];
  #opening = 0;
  /** Lasts until the pool is emptied; what is still being opened then is not wanted any more. */
  #era = new AbortController();

  constructor(options: CallPoolOptions) {
    this.#open = options.open;
    this.#maxConnections = options.maxConnections;
  }

  /** Calls past their deadline that the daemon still works on. Each takes one of its worker threads, 20 by default. */
  get overdue(): number {
    return [...this.#connections].reduce((sum, connection) => sum + connection.overdue, 0);
  }

  /** `stillSinceMs`: since when a guest stands still until this is done; Infinity for one that runs. */
  call<A, R>(procedure: Procedure<A, R>, args: A, deadlineMs = defaultDeadlineMs, stillSinceMs = Infinity): Promise<R> {
    return new Promise<R>((resolve, reject) => {
      const madeAt = performance.now();
      const settle = (): void => {
        clearTimeout(timer);
        this.#queue = this.#queue.filter((other) => other !== queued);
      };
      const queued: QueuedCall = {
        stillSinceMs,
        send: (connection) => {
          settle();
          const leftMs = Math.max(1, Math.ceil(deadlineMs - (performance.now() - madeAt)));
          connection.call(procedure, args, leftMs).then(resolve, reject);
        },
        fail: (error) => {
          settle();
          reject(error);
        },
      };
      const timer = setTimeout(() => queued.fail(new CallTimeoutError(procedure.name, deadlineMs, false)), deadlineMs);
      const before = this.#queue.findLastIndex((other) => other.stillSinceMs <= stillSinceMs);
      this.#queue.splice(before + 1, 0, queued);
      this.#pump();
    });
  }

  /** Closes all connections and rejects all calls; the next call opens a new connection. */
  async empty(reason: ConnectionLostError): Promise<void> {
    this.#era.abort();
    this.#era = new AbortController();
    this.#opening = 0;
    this.#failQueue(reason);
    const connections = [...this.#connections];
    this.#connections.clear();
    await Promise.all(connections.map((connection) => connection.close(reason)));
  }

  #pump(): void {
    for (const queued of [...this.#queue]) {
      const connection = this.#withPlace();
      if (connection === undefined) break;
      queued.send(connection);
    }
    const missing = Math.ceil(this.#queue.length / callsPerConnection) - this.#opening;
    const allowed = this.#maxConnections - this.#connections.size - this.#opening;
    for (let count = Math.min(missing, allowed); count > 0; count--) void this.#addConnection();
  }

  #withPlace(): Connection | undefined {
    const [leastBusy] = [...this.#connections].sort((one, other) => one.unanswered - other.unanswered);
    return leastBusy !== undefined && leastBusy.unanswered < callsPerConnection ? leastBusy : undefined;
  }

  async #addConnection(): Promise<void> {
    const era = this.#era;
    this.#opening++;
    try {
      const connection = await this.#open(era.signal);
      if (era.signal.aborted) {
        await connection.close();
        return;
      }
      this.#opening--;
      this.#connections.add(connection);
      connection.on('placeFree', () => this.#pump());
      connection.on('lost', () => {
        this.#connections.delete(connection);
        this.#pump();
      });
    } catch (error) {
      if (era.signal.aborted) return;
      this.#opening--;
      if (this.#connections.size === 0 && this.#opening === 0) this.#failQueue(error as Error);
      return;
    }
    this.#pump();
  }

  #failQueue(error: Error): void {
    for (const queued of this.#queue) queued.fail(error);
  }
}
