import { CdpError, errorText } from '../errors.ts';
import type { RecordStore } from '../store/record-store.ts';
import type { DomainRecord, DomainRecordSchema } from './record.ts';

/** A record that can't be written by then does not hold up a guest any longer. */
const inTimeMs = 2_000;

/** Whatever needs a durable record fails then. */
const saveMs = 10_000;

/**
 * One domain's record, in memory and on disk.
 *
 * INVARIANTS
 * - One write at a time, in the order of asking: the file never goes back to an older record. A write that had to wait is left out
 *   if a newer record was asked for meanwhile.
 * - What `save` resolved for is durable. Only `saveInTime`, for a guest that waits, may go on before, and says so.
 * - No store is waited for without end: a domain that waits for one could not be failed over.
 */
export class RecordKeeper {
  readonly #store: Pick<RecordStore<DomainRecordSchema>, 'save' | 'remove'>;
  readonly #changed: () => void;
  #record: DomainRecord;
  /** What the file is to hold. */
  #wanted: DomainRecord;
  #saving: Promise<void> = Promise.resolve();
  #behind = false;
  #told = false;

  constructor(
    store: Pick<RecordStore<DomainRecordSchema>, 'save' | 'remove'>,
    record: DomainRecord,
    changed: () => void,
  ) {
    this.#store = store;
    this.#record = record;
    this.#wanted = record;
    this.#changed = changed;
  }

  get record(): DomainRecord {
    return this.#record;
  }

  /** What the record says from now on; it is durable when something is saved next. */
  take(record: DomainRecord): void {
    this.#record = record;
  }

  /** Durable when it returns; a record without disks is removed. @throws Error if the store fails, or does not answer: nothing has changed then */
  async save(record: DomainRecord): Promise<void> {
    try {
      await this.#write(record, saveMs);
    } catch (error) {
      this.#wanted = this.#record;
      throw error;
    }
    this.#record = record;
    this.#changed();
  }

  /**
   * With policy `available` a store that hangs or fails does not keep the guest waiting, with `strict` it does; `late` is told why,
   * once for as long as it lasts. @throws Error with policy `strict`, as `save` does
   */
  async saveInTime(record: DomainRecord, late: (why: string) => void): Promise<void> {
    try {
      if (record.policy === 'strict') {
        await this.save(record);
        return;
      }
      this.#record = record;
      await this.#write(record, inTimeMs);
    } catch (error) {
      if (!this.#told) late(errorText(error));
      this.#told = true;
      if (record.policy === 'strict') throw error;
    }
    this.#changed();
  }

  /** Saves again what could not be saved in time. @throws Error if it still can't be */
  async catchUp(): Promise<void> {
    if (this.#behind) await this.#write(this.#record, inTimeMs);
  }

  async #write(record: DomainRecord, deadlineMs: number): Promise<void> {
    this.#behind = true;
    this.#wanted = record;
    const written = this.#saving.then(async () => {
      if (this.#wanted !== record) throw new Error('another record took its place');
      if (!this.#behind) return;
      if (record.disks.length === 0) await this.#store.remove(record.uuid);
      else await this.#store.save(record.uuid, record);
      if (this.#wanted !== record) return;
      this.#behind = false;
      this.#told = false;
    });
    this.#saving = written.catch(() => undefined);
    let timer: NodeJS.Timeout | undefined;
    const passed = new Promise<never>((_, reject) => {
      timer = setTimeout(() => reject(storeHangs(record.name, deadlineMs)), deadlineMs);
    });
    await Promise.race([written, passed]).finally(() => clearTimeout(timer));
  }
}

function storeHangs(domain: string, forMs: number): CdpError {
  return new CdpError({
    code: 'record-not-durable',
    message: `the record of ${domain} could not be written: the store has not answered for ${forMs} ms`,
    hint: "look at the file system that 'store' in the configuration names",
  });
}
