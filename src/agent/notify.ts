import { spawn } from 'node:child_process';
import type { Config } from '../config/config.ts';
import { errorText } from '../errors.ts';
import type { Log } from '../log.ts';
import type { ProtectionEvent } from '../protection/model.ts';

/** So many events wait for a program or a server that is slow; of more, the oldest are left out. */
const maxWaiting = 1000;

type Deliver = (event: ProtectionEvent, config: Config['notify'], ended: AbortSignal) => Promise<void>;

/**
 * Tells every change of a disk's state to a program and to a server of the administrator's. Neither is waited for by anything, and what
 * fails is in the log, not tried again: `virt-cdp events --since N` has it all.
 *
 * INVARIANT: one delivery at a time to each of the two, in the order of the events.
 */
export class Notifier {
  readonly #config: () => Config['notify'];
  readonly #ways: Way[];
  readonly #ended = new AbortController();

  constructor(config: () => Config['notify'], log: Log) {
    this.#config = config;
    this.#ways = [
      new Way('notify.exec', runProgram, log, this.#ended.signal),
      new Way('notify.webhook', post, log, this.#ended.signal),
    ];
  }

  /** Returns at once. */
  tell(event: ProtectionEvent): void {
    if (event.to === null) return;
    for (const way of this.#ways) way.enqueue(event, this.#config());
  }

  /** What is under way is given up. */
  close(): void {
    this.#ended.abort();
  }
}

class Way {
  readonly #key: string;
  readonly #deliver: Deliver;
  readonly #log: Log;
  readonly #ended: AbortSignal;
  readonly #waiting: { event: ProtectionEvent; config: Config['notify'] }[] = [];
  #busy = false;

  constructor(key: string, deliver: Deliver, log: Log, ended: AbortSignal) {
    this.#key = key;
    this.#deliver = deliver;
    this.#log = log;
    this.#ended = ended;
  }

  enqueue(event: ProtectionEvent, config: Config['notify']): void {
    this.#waiting.push({ event, config });
    if (this.#waiting.length > maxWaiting) {
      const left = this.#waiting.shift();
      this.#log.warn('a notification was left out', { key: this.#key, seq: left?.event.seq });
    }
    if (!this.#busy) void this.#work();
  }

  async #work(): Promise<void> {
    this.#busy = true;
    for (let next = this.#waiting.shift(); next !== undefined; next = this.#waiting.shift()) {
      if (this.#ended.aborted) break;
      try {
        await this.#deliver(next.event, next.config, this.#ended);
      } catch (error) {
        this.#log.warn('a notification failed', { key: this.#key, seq: next.event.seq, error: errorText(error) });
      }
    }
    this.#busy = false;
  }
}

/** The program gets the event as JSON on its stdin; one that has not ended by the deadline is killed. */
const runProgram: Deliver = (event, { exec, deadlineMs }, ended) => {
  const [program, ...args] = exec ?? [];
  if (program === undefined) return Promise.resolve();
  return new Promise((resolve, reject) => {
    const signal = AbortSignal.any([ended, AbortSignal.timeout(deadlineMs)]);
    const child = spawn(program, args, {
      cwd: '/',
      stdio: ['pipe', 'ignore', 'ignore'],
      signal,
      killSignal: 'SIGKILL',
    });
    child.once('error', (error) => {
      reject(signal.aborted ? new Error(`${program} did not end within ${deadlineMs} ms`) : error);
    });
    child.once('exit', (code, killedBy) => {
      if (code === 0) resolve();
      else reject(new Error(`${program} ended with ${killedBy ?? `status ${String(code)}`}`));
    });
    // One that does not read its stdin is no failure.
    child.stdin.on('error', () => undefined).end(`${JSON.stringify(event)}\n`);
  });
};

/** The server gets the event as the JSON body of a POST. */
const post: Deliver = async (event, { webhook, deadlineMs }, ended) => {
  if (webhook === null) return;
  const response = await fetch(webhook, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(event),
    redirect: 'error',
    signal: AbortSignal.any([ended, AbortSignal.timeout(deadlineMs)]),
  });
  await response.body?.cancel();
  if (!response.ok) throw new Error(`it answered ${response.status}`);
};
