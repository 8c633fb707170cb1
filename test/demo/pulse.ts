import type { Ack, Witness } from '../lab/oracle.ts';

const bucketMs = 100;
const bars = ['·', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/** The guest's acknowledgements over time, as they were seen on its console. */
export class Pulse {
  readonly #witness: Witness;
  readonly #startedAtMs = performance.now();
  readonly #buckets: number[] = [];
  #lastMs = performance.now();
  #longestMs = 0;

  constructor(witness: Witness) {
    this.#witness = witness;
    witness.onAck((ack) => this.#beat(ack));
  }

  /** `acks/100 ms ▅▆▅▅·▃▅▆  612 acknowledged`; the last 100 ms are on the right. */
  line(seconds: number): string {
    const now = Math.floor((performance.now() - this.#startedAtMs) / bucketMs);
    const counts = Array.from({ length: seconds * 10 }, (_, index) => this.#buckets[now - seconds * 10 + index] ?? 0);
    const most = Math.max(1, ...counts);
    const spark = counts.map((count) => bars[Math.ceil((count / most) * (bars.length - 1))]).join('');
    const last = counts.slice(-10).reduce((sum, count) => sum + count, 0);
    return `guest  ${spark}  ${String(last).padStart(3)}/s  ${this.#witness.acknowledged()} writes acknowledged`;
  }

  /** From now on the longest time without an acknowledgement is measured anew. */
  mark(): void {
    this.#longestMs = 0;
    this.#lastMs = performance.now();
  }

  /** The longest time between two acknowledgements since `mark`. */
  get longestWaitMs(): number {
    return Math.round(this.#longestMs);
  }

  #beat({ atMs }: Ack): void {
    this.#longestMs = Math.max(this.#longestMs, atMs - this.#lastMs);
    this.#lastMs = atMs;
    const bucket = Math.floor((atMs - this.#startedAtMs) / bucketMs);
    this.#buckets[bucket] = (this.#buckets[bucket] ?? 0) + 1;
  }
}
