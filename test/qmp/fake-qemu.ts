import { setImmediate as soon } from 'node:timers/promises';
import { Monitor, type QmpChannel, type QmpEvent } from '../../src/qmp/monitor.ts';

type Answer = unknown;
type Arguments = Record<string, unknown>;

/** Answers one command; throwing a Refusal is QEMU's error. */
export type Answers = Record<string, (args: Arguments) => Answer>;

export class Refusal extends Error {
  readonly errorClass: string;

  constructor(description: string, errorClass = 'GenericError') {
    super(description);
    this.errorClass = errorClass;
  }
}

/** A QEMU at the wire: JSON lines in, JSON lines out, events whenever a test wants them. */
export class FakeQemu implements QmpChannel {
  /** The commands in the order they came, each with what tells it from others. */
  readonly sent: string[] = [];
  readonly #answers: Answers;
  readonly #listeners = new Set<(event: QmpEvent) => void>();

  constructor(answers: Answers = {}) {
    this.#answers = answers;
  }

  get monitor(): Monitor {
    return new Monitor(this);
  }

  get listeners(): number {
    return this.#listeners.size;
  }

  async send(request: string): Promise<string> {
    const { execute, arguments: args } = JSON.parse(request) as { execute: string; arguments: Arguments };
    const subject =
      args['node-name'] ?? args['value'] ?? args['job-id'] ?? args['device'] ?? args['name'] ?? args['command-line'];
    this.sent.push(typeof subject === 'string' ? `${execute} ${subject}` : execute);
    await soon();
    try {
      return JSON.stringify({ return: this.#answers[execute]?.(args) ?? {} });
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      return JSON.stringify({ error: { class: error.errorClass, desc: error.message } });
    }
  }

  onEvent(listener: (event: QmpEvent) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  emit(event: string, data: QmpEvent['data'] = {}): void {
    for (const listener of [...this.#listeners]) listener({ event, timeMs: 0, data });
  }
}
