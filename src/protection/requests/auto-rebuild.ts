import { errorText } from '../../errors.ts';
import type { Protector } from '../protector.ts';

const firstRetryMs = 10_000;
const lastRetryMs = 10 * 60_000;

/** Begins rebuilds without being asked, where they are declared so, and again with growing pauses as long as they fail. */
export class AutoRebuild {
  readonly #rebuild: (protector: Protector, dev: string) => Promise<void>;
  /** By domain and disk: attempts since the disk was last protected. */
  readonly #attempts = new Map<string, { count: number; nextAtMs: number }>();

  constructor(rebuild: (protector: Protector, dev: string) => Promise<void>) {
    this.#rebuild = rebuild;
  }

  /** Looks at a domain whose state was just shown; `always` is the host's wish for disks that say nothing themselves. */
  consider(protector: Protector, always: boolean): void {
    for (const disk of protector.record.disks) {
      const key = `${protector.record.uuid}/${disk.dev}`;
      if (disk.primary.current) this.#attempts.delete(key);
      const wanted = disk.rebuildAuto || always;
      if (disk.state !== 'failed-over' || disk.intent.kind !== 'protect' || disk.rebuildTo === null || !wanted)
        continue;
      const { count, nextAtMs } = this.#attempts.get(key) ?? { count: 0, nextAtMs: 0 };
      if (Date.now() < nextAtMs) continue;
      const pauseMs = Math.min(lastRetryMs, firstRetryMs * 2 ** count);
      this.#attempts.set(key, { count: count + 1, nextAtMs: Date.now() + pauseMs });
      this.#rebuild(protector, disk.dev).catch((error: unknown) => {
        protector.note('rebuild-failed', disk.dev, { why: errorText(error), againInMs: pauseMs });
      });
      setTimeout(() => protector.wake(), pauseMs).unref();
    }
  }
}
