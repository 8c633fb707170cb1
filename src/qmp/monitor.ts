import type { CommandName, QmpCommands } from './commands.ts';
import { QmpError, QmpTimeoutError } from './errors.ts';

/** An event as QEMU sent it. */
export interface QmpEvent {
  event: string;
  /** QEMU's own time of the event, in ms since 1970. */
  timeMs: number;
  data: Record<string, unknown>;
}

/** How commands reach one QEMU and events come back: libvirt's passthrough, or a socket in a test. */
export interface QmpChannel {
  /** Sends one command as a JSON line and answers QEMU's JSON line. */
  send(request: string): Promise<string>;
  /** Calls back for each event until the returned function is called. */
  onEvent(listener: (event: QmpEvent) => void): () => void;
}

interface Reply {
  return?: unknown;
  error?: { class: string; desc: string };
}

/** One QEMU's monitor, typed. */
export class Monitor {
  readonly #channel: QmpChannel;

  constructor(channel: QmpChannel) {
    this.#channel = channel;
  }

  /** @throws QmpError when QEMU refuses; whatever the channel throws when it is lost. */
  async execute<C extends CommandName>(
    command: C,
    args: QmpCommands[C]['arguments'],
  ): Promise<QmpCommands[C]['result']> {
    const reply = JSON.parse(await this.#channel.send(JSON.stringify({ execute: command, arguments: args }))) as Reply;
    if (reply.error) throw new QmpError(command, reply.error.class, reply.error.desc);
    return reply.return;
  }

  onEvent(listener: (event: QmpEvent) => void): () => void {
    return this.#channel.onEvent(listener);
  }

  /**
   * Runs `trigger` and answers the first event for which `matches` is true. The listener is in place before the
   * trigger runs, so an event that comes at once is not missed.
   * @throws QmpTimeoutError past the deadline; what `trigger` throws.
   */
  async eventAfter(
    awaited: string,
    matches: (event: QmpEvent) => boolean,
    deadlineMs: number,
    trigger: () => Promise<unknown>,
  ): Promise<QmpEvent> {
    let stop = (): void => undefined;
    const event = new Promise<QmpEvent>((resolve, reject) => {
      const timer = setTimeout(() => reject(new QmpTimeoutError(awaited, deadlineMs)), deadlineMs);
      const unsubscribe = this.#channel.onEvent((candidate) => {
        if (matches(candidate)) resolve(candidate);
      });
      stop = () => {
        clearTimeout(timer);
        unsubscribe();
      };
    });
    event.catch(() => undefined);
    try {
      await trigger();
      return await event;
    } finally {
      stop();
    }
  }
}
