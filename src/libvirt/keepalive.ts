/** libvirt's keepalive (src/rpc/virkeepalive.c): a peer that stays silent while it is pinged is dead. */
export interface KeepaliveOptions {
  intervalMs: number;
  /** So many pings may stay without any sign of life; the peer is given up one interval after the last of them. */
  unanswered: number;
}

/** What libvirt's own daemon and clients use. */
export const defaultKeepalive: KeepaliveOptions = { intervalMs: 5000, unanswered: 5 };

export class Keepalive {
  readonly #timer: NodeJS.Timeout;
  #unanswered = 0;

  constructor(options: KeepaliveOptions, ping: () => void, onSilence: () => void) {
    this.#timer = setInterval(() => {
      if (this.#unanswered >= options.unanswered) {
        onSilence();
      } else {
        this.#unanswered++;
        ping();
      }
    }, options.intervalMs);
  }

  /** Whatever the peer sends is a sign of life. */
  heard(): void {
    this.#unanswered = 0;
  }

  stop(): void {
    clearInterval(this.#timer);
  }
}

export const keepaliveProcedure = { ping: 1, pong: 2 } as const;
