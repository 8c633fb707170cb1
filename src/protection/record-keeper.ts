import { errorText } from '../errors.ts';
import type { RecordStore } from '../store/record-store.ts';
import type { DomainRecord, DomainRecordSchema } from './record.ts';

/** A record that can't be written by then does not hold up a guest any longer. */
const inTimeMs = 2_000;

/**
 * One domain's record, in memory and on disk.
 *
 * INVARIANTS
 * - One write at a time, in the order of asking: the file never goes back to an older record.
 * - What `save` resolved for is durable. Only `saveInTime`, for a guest that waits, may go on before, and says so.
 */
export class RecordKeeper {
  readonly #store: RecordStore<DomainRecordSchema>;
  readonly #changed: () => void;
  #record: DomainRecord;
  #saving: Promise<void> = Promise.resolve();
  #behind = false;

  constructor(store: RecordStore<DomainRecordSchema>, record: DomainRecord, changed: () => void) {
    this.#store = store;
    this.#record = record;
    this.#changed = changed;
  }

  get record(): DomainRecord {
    return this.#record;
  }

  /** What the record says from now on; it is durable when something is saved next. */
  take(record: DomainRecord): void {
    this.#record = record;
  }

  /** Durable when it returns; a record without disks is removed. */
  async save(record: DomainRecord): Promise<void> {
    await this.#write(record);
    this.#record = record;
    this.#changed();
  }

  /** With policy `available` a store that hangs or fails does not keep the guest waiting: `late` is told why. */
  async saveInTime(record: DomainRecord, late: (why: string) => void): Promise<void> {
    if (record.policy === 'strict') return this.save(record);
    this.#record = record;
    let timer: NodeJS.Timeout | undefined;
    const passed = new Promise<never>((_, reject) => {
      timer = setTimeout(() => reject(new Error(`not durable after ${inTimeMs} ms`)), inTimeMs);
    });
    try {
      await Promise.race([this.#write(record), passed]);
    } catch (error) {
      late(errorText(error));
    } finally {
      clearTimeout(timer);
    }
    this.#changed();
  }

  /** Saves again what could not be saved in time. */
  async catchUp(): Promise<void> {
    if (this.#behind) await this.save(this.#record);
  }

  #write(record: DomainRecord): Promise<void> {
    const written = this.#saving.then(async () => {
      this.#behind = true;
      if (record.disks.length === 0) await this.#store.remove(record.uuid);
      else await this.#store.save(record.uuid, record);
      this.#behind = false;
    });
    this.#saving = written.catch(() => undefined);
    return written;
  }
}
