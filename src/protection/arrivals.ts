import { setTimeout as sleep } from 'node:timers/promises';
import type { Image } from '../domain/image.ts';
import { CdpError, errorText } from '../errors.ts';
import { resume } from '../graph/surgery.ts';
import { imageName } from '../storage/image.ts';
import { probeImage } from '../storage/tools.ts';
import type { Host } from './host.ts';
import { refuseImageInUse } from './image-users.ts';
import type { LiveDomain } from './live-domain.ts';
import type { Side } from './model.ts';
import type { Protector } from './protector.ts';
import { arriving, type DomainRecord } from './record.ts';

/** So many of the mirror's time-outs a guest that has arrived waits, paused, for its source's word; then it goes on without. */
const timeoutsForWord = 3;

/** So many more it waits until its copies have been dealt with. */
const timeoutsForArming = 2;

interface Expected {
  ticket: string;
  /** Nothing was known here of the domain before. */
  isNew: boolean;
  /** The disks whose copies were identical when the domain left its source. */
  word: Signal<string[]>;
  wentOn: Signal<undefined>;
}

interface Signal<T> {
  seen: Promise<T>;
  give: (value: T) => void;
}

/**
 * Domains that come from another host by `virt-cdp migrate`: announced beforehand, paused on arrival, and armed without copying if their
 * source says that their copies are identical.
 *
 * INVARIANTS
 * - Only what is in memory counts: whatever is lost or late makes the mirror stale, and nothing else.
 * - An announcement serves one arrival, and the word belongs to its ticket.
 * - A guest that has arrived goes on in bounded time, with or without the word, armed or not.
 */
export class Arrivals {
  readonly #host: Host;
  readonly #expected = new Map<string, Expected>();

  constructor(host: Host) {
    this.#host = host;
  }

  /**
   * Another host's domain is about to come, with its record: from now on it is this host's too, with the mirror stale.
   * @throws CdpError `domain-is-here`, `copy-unreachable`, `image-in-use`
   */
  async expect(ticket: string, record: DomainRecord): Promise<void> {
    const host = this.#host;
    const { uuid, name } = record;
    const here = await host.session.client.findByUuid(uuid);
    if (here !== null && here.id >= 0) {
      throw new CdpError({
        code: 'domain-is-here',
        message: `${name} runs on the destination already`,
        hint: `virsh domstate ${name}, on both hosts`,
      });
    }
    await host.claiming(async () => {
      for (const disk of record.disks) {
        for (const side of ['primary', 'mirror'] as const) await this.#requireToAnswer(name, side, disk[side].image);
        await refuseImageInUse(host, { uuid, dev: disk.dev }, disk.mirror.image, disk.primary.image, uuid);
      }
      const isNew = host.protectorOf(uuid) === null;
      await host.adopt(arriving(record, new Date().toISOString()));
      this.#expected.set(uuid, { ticket, isNew, word: signal(), wentOn: signal() });
    });
  }

  /** It does not come. What was known here before stays forgotten: it was older. */
  async cancel(ticket: string): Promise<void> {
    const [uuid, expected] = this.#of(ticket) ?? [];
    if (uuid === undefined || expected === undefined) return;
    this.#expected.delete(uuid);
    expected.word.give([]);
    const protector = this.#host.protectorOf(uuid);
    if (expected.isNew && protector?.live === null) await protector.amend((record) => ({ ...record, disks: [] }));
  }

  /** It has left its source, whose QEMU is gone. Answers when the guest goes on. @throws CdpError `not-expected` */
  async handOver(ticket: string, identical: string[]): Promise<Protector> {
    const [uuid, expected] = this.#of(ticket) ?? [];
    const protector = uuid === undefined ? null : this.#host.protectorOf(uuid);
    if (uuid === undefined || expected === undefined || protector === null) throw notExpected();
    expected.word.give(identical);
    const ref = await this.#host.session.client.findByUuid(uuid);
    if (ref === null || ref.id < 0) throw notExpected();
    await this.#host.begin(ref);
    const timeouts = timeoutsForWord + timeoutsForArming;
    const late = sleep(timeouts * this.#timeoutMs, 'late' as const, { ref: false });
    if ((await Promise.race([expected.wentOn.seen, late])) === 'late') throw notExpected();
    return protector;
  }

  /** Waits for the word on a domain that has just arrived; null if nobody announced it. */
  async word(uuid: string): Promise<string[] | null> {
    const expected = this.#expected.get(uuid);
    if (expected === undefined) return null;
    return Promise.race([expected.word.seen, sleep(timeoutsForWord * this.#timeoutMs, [], { ref: false })]);
  }

  /** Lets the guest go on when its disks have been looked at, and what could be done was done. */
  async goOn({ uuid, name }: { uuid: string; name: string }, live: LiveDomain, looked: Promise<void>): Promise<void> {
    const expected = this.#expected.get(uuid);
    if (expected === undefined) return;
    const { log } = this.#host;
    const why = (error: unknown): void => void log.warn('an arrival', { domain: name, error: errorText(error) });
    await Promise.race([looked.catch(why), sleep(timeoutsForArming * this.#timeoutMs, undefined, { ref: false })]);
    if (this.#expected.get(uuid) !== expected) return;
    this.#expected.delete(uuid);
    try {
      await resume(live.monitor);
    } catch (error) {
      why(error);
    }
    this.#host.tell(name, null, 'arrived', {});
    expected.wentOn.give(undefined);
  }

  get #timeoutMs(): number {
    return this.#host.config().mirror.timeoutMs;
  }

  #of(ticket: string): [string, Expected] | undefined {
    return [...this.#expected].find(([, expected]) => expected.ticket === ticket);
  }

  async #requireToAnswer(name: string, side: Side, image: Image): Promise<void> {
    const answer = await probeImage(image, {
      deadlineMs: this.#timeoutMs,
      opener: this.#host.opener,
    });
    if (answer.ok) return;
    throw new CdpError({
      code: 'copy-unreachable',
      message: `${name}'s ${side}, '${imageName(image)}', does not answer the destination: ${answer.reason}`,
      hint: 'both hosts must reach both copies by the same names',
    });
  }
}

function signal<T>(): Signal<T> {
  let give: (value: T) => void = () => undefined;
  const seen = new Promise<T>((resolve) => {
    give = resolve;
  });
  return { seen, give };
}

function notExpected(): CdpError {
  return new CdpError({
    code: 'not-expected',
    message: 'the domain is not waited for any more: its guest went on without, or the agent was restarted',
  });
}
