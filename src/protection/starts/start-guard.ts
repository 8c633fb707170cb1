import type { Domain } from '../../domain/domain.ts';
import type { Image } from '../../domain/image.ts';
import { errorText } from '../../errors.ts';
import type { Log } from '../../log.ts';
import type { DomainRecord } from '../record.ts';
import { answerHook, type HookAnswer } from './hook-answer.ts';
import { sameBy } from './name-table.ts';
import { RealNames } from './real-names.ts';
import { imagesOf, linesOfOthers, namesStale, writeStaleSources } from './stale-sources.ts';

export interface GuardParts {
  storePath: string;
  log: Log;
  records: () => DomainRecord[];
  /** How long a storage may take to say where a path leads. */
  lookUpDeadlineMs: () => number;
}

/** Keeps ready what libvirt's hook asks for: in memory while the agent runs, and in files for when it does not. */
export class StartGuard {
  readonly #parts: GuardParts;
  readonly #names: RealNames;
  /** Of the stale copies that only unreadable records know. */
  #kept: string[] = [];
  /** One write of the list after the other. */
  #listed: Promise<void> = Promise.resolve();

  constructor(parts: GuardParts) {
    this.#parts = parts;
    this.#names = new RealNames(parts.storePath, parts.log);
  }

  /** From memory alone: libvirt holds the domain locked while it waits for this. */
  answer(operation: string, domainXml: string): HookAnswer {
    const answer = answerHook(this.#parts.records(), operation, domainXml, true, sameBy(this.#names.table));
    const kept = this.#kept.find((line) => namesStale(line, domainXml));
    if (answer.refuse !== null || kept === undefined) return answer;
    const stale = kept.split('\t')[0];
    const message = `'${stale}' was a stale copy when the record of its domain could last be read. Type: virt-cdp doctor`;
    return { refuse: { message }, xml: null };
  }

  /** There are records that can't be read: what was listed of them stays listed. */
  async keepListed(): Promise<void> {
    this.#kept = await linesOfOthers(this.#parts.storePath, this.#parts.records());
  }

  /** A record came, went or changed. */
  recordsChanged(): void {
    this.#list();
    this.#learn(this.#names.learnNew(this.#parts.records().flatMap(imagesOf), this.#parts.lookUpDeadlineMs()));
  }

  /** A definition on this host names these images, maybe by a link to one of ours. */
  defined({ disks }: Domain): void {
    const images = disks.flatMap(({ image }): Image[] => (image === null ? [] : [image]));
    this.#learn(this.#names.learn(images, this.#parts.lookUpDeadlineMs()));
  }

  /** What is under way is written. */
  async close(): Promise<void> {
    await this.#listed;
  }

  #learn(learnt: Promise<boolean>): void {
    learnt
      .then((changed) => {
        if (changed) this.#list();
      })
      .catch((error: unknown) =>
        this.#parts.log.warn('the names of images could not be kept', { error: errorText(error) }),
      );
  }

  #list(): void {
    const { storePath, log } = this.#parts;
    this.#listed = this.#listed
      .then(() => writeStaleSources(storePath, this.#parts.records(), this.#names.table, this.#kept))
      .catch((error: unknown) => void log.warn('the stale sources could not be listed', { error: errorText(error) }));
  }
}
