import { appendFileSync, existsSync, mkdirSync, readFileSync, renameSync, statSync } from 'node:fs';
import { join } from 'node:path';

/** Past this size the log is turned over; one old log is kept. */
const maxLogBytes = 8 * 1024 * 1024;

/** How many of the newest entries are kept in memory. */
const maxRemembered = 10_000;

/**
 * The numbered history of this host, one JSON object a line in `events.jsonl`. Appending is not fsynced: an event may be lost
 * in a power cut, a record may not.
 */
export class EventLog<Entry extends { seq: number }> {
  readonly #path: string;
  readonly #listeners = new Set<(entry: Entry) => void>();
  #entries: Entry[];
  #lastSeq: number;

  constructor(storePath: string) {
    mkdirSync(storePath, { recursive: true, mode: 0o700 });
    this.#path = join(storePath, 'events.jsonl');
    this.#entries = [...readEntries<Entry>(`${this.#path}.1`), ...readEntries<Entry>(this.#path)].slice(-maxRemembered);
    this.#lastSeq = this.#entries.at(-1)?.seq ?? 0;
    if (existsSync(this.#path) && !readFileSync(this.#path, 'utf8').endsWith('\n')) appendFileSync(this.#path, '\n');
  }

  append(event: Omit<Entry, 'seq'>): Entry {
    const entry = { seq: ++this.#lastSeq, ...event } as Entry;
    this.#entries.push(entry);
    if (this.#entries.length > maxRemembered) this.#entries.shift();
    if (existsSync(this.#path) && statSync(this.#path).size > maxLogBytes) renameSync(this.#path, `${this.#path}.1`);
    appendFileSync(this.#path, JSON.stringify(entry) + '\n', { mode: 0o600 });
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
