import { existsSync, mkdirSync, readFileSync } from 'node:fs';
import { appendFile, rename, stat } from 'node:fs/promises';
import { join } from 'node:path';

/** Past this size the log is turned over; one old log is kept. */
const maxLogBytes = 8 * 1024 * 1024;

/** How many of the newest entries are kept in memory. */
const maxRemembered = 10_000;

/**
 * The numbered history of this host, one JSON object a line in `events.jsonl`. Appending is not fsynced, and waits for nothing: an event
 * may be lost with the agent, a record may not, and a store that hangs or is full holds up no domain.
 */
export class EventLog<Entry extends { seq: number }> {
  readonly #path: string;
  readonly #listeners = new Set<(entry: Entry) => void>();
  #entries: Entry[];
  #lastSeq: number;
  /** The last entry that is in the file. */
  #writtenSeq: number;
  /** The file may end in the middle of a line. */
  #torn: boolean;
  #writing: Promise<void> | null = null;

  constructor(storePath: string) {
    mkdirSync(storePath, { recursive: true, mode: 0o700 });
    this.#path = join(storePath, 'events.jsonl');
    this.#entries = [...readEntries<Entry>(`${this.#path}.1`), ...readEntries<Entry>(this.#path)].slice(-maxRemembered);
    this.#lastSeq = this.#entries.at(-1)?.seq ?? 0;
    this.#writtenSeq = this.#lastSeq;
    this.#torn = existsSync(this.#path) && !readFileSync(this.#path, 'utf8').endsWith('\n');
  }

  append(event: Omit<Entry, 'seq'>): Entry {
    const entry = { seq: ++this.#lastSeq, ...event } as Entry;
    this.#entries.push(entry);
    if (this.#entries.length > maxRemembered) this.#entries.shift();
    this.#writing ??= this.#write().finally(() => (this.#writing = null));
    for (const listener of this.#listeners) listener(entry);
    return entry;
  }

  /** Entries with seq > since, oldest first. */
  since(since: number): Entry[] {
    return this.#entries.filter(({ seq }) => seq > since);
  }

  /** Calls back for each later entry until the returned function is called. */
  follow(listener: (entry: Entry) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** What was appended is in the file when it returns, if the store takes it. */
  async written(): Promise<void> {
    await this.#writing;
  }

  /** What a store does not take is written with the next event. */
  async #write(): Promise<void> {
    try {
      for (let entries = this.since(this.#writtenSeq); entries.length > 0; entries = this.since(this.#writtenSeq)) {
        await this.#turnOver();
        const lines = entries.map((entry) => JSON.stringify(entry) + '\n');
        await appendFile(this.#path, (this.#torn ? '\n' : '') + lines.join(''), { mode: 0o600 });
        this.#torn = false;
        this.#writtenSeq = entries.at(-1)?.seq ?? this.#writtenSeq;
      }
    } catch {
      this.#torn = true;
    }
  }

  async #turnOver(): Promise<void> {
    const { size } = await stat(this.#path).catch(() => ({ size: 0 }));
    if (size > maxLogBytes) await rename(this.#path, `${this.#path}.1`);
  }
}

/** A line that was cut off by a crash is passed over. */
function readEntries<Entry>(path: string): Entry[] {
  if (!existsSync(path)) return [];
  return readFileSync(path, 'utf8')
    .split('\n')
    .flatMap((line) => {
      try {
        return [JSON.parse(line) as Entry];
      } catch {
        return [];
      }
    });
}
