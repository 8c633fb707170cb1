import { mkdir, readdir, readFile, rm } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { z } from 'zod';
import { CdpError, errorText } from '../errors.ts';
import { syncFolder, writeDurably } from './durable-file.ts';

/**
 * One JSON file a domain, `domains/UUID.json` in the store. What it says outlives the agent, libvirt's XML and a power cut, and
 * is the authority on which copies are current.
 */
export class RecordStore<Schema extends z.ZodType<{ uuid: string }>> {
  readonly #folder: string;
  readonly #schema: Schema;

  private constructor(folder: string, schema: Schema) {
    this.#folder = folder;
    this.#schema = schema;
  }

  static async open<Schema extends z.ZodType<{ uuid: string }>>(
    storePath: string,
    schema: Schema,
  ): Promise<RecordStore<Schema>> {
    const folder = join(storePath, 'domains');
    await mkdir(folder, { recursive: true, mode: 0o700 });
    return new RecordStore(folder, schema);
  }

  /** All records that can be read, and of the others the UUIDs, with what is wrong: what can't be understood must not be guessed. */
  async all(): Promise<{ records: z.infer<Schema>[]; unreadable: Map<string, CdpError> }> {
    const records: z.infer<Schema>[] = [];
    const unreadable = new Map<string, CdpError>();
    for (const name of await this.#names()) {
      const uuid = basename(name, '.json');
      try {
        records.push(await this.#read(uuid));
      } catch (error) {
        unreadable.set(uuid, unreadableRecord(this.#path(uuid), error));
      }
    }
    return { records, unreadable };
  }

  /** Durable when it returns. */
  async save(uuid: string, record: z.infer<Schema>): Promise<void> {
    await writeDurably(this.#path(uuid), JSON.stringify(record, null, 2) + '\n');
  }

  async remove(uuid: string): Promise<void> {
    await rm(this.#path(uuid), { force: true });
    await syncFolder(this.#folder);
  }

  async #names(): Promise<string[]> {
    return (await readdir(this.#folder)).filter((name) => name.endsWith('.json'));
  }

  #path(uuid: string): string {
    return join(this.#folder, `${uuid}.json`);
  }

  async #read(uuid: string): Promise<z.infer<Schema>> {
    const record = this.#schema.parse(JSON.parse(await readFile(this.#path(uuid), 'utf8')));
    if (record.uuid !== uuid) throw new Error(`it is the record of another domain, ${record.uuid}`);
    return record;
  }
}

function unreadableRecord(path: string, cause: unknown): CdpError {
  const why =
    cause instanceof z.ZodError
      ? cause.issues.map(({ path, message }) => [...path, message].join(': ')).join('; ')
      : errorText(cause);
  return new CdpError({
    code: 'record-invalid',
    message: `the record ${path} can't be read: ${why}`,
    hint:
      'restore it from a backup, then: systemctl restart virt-cdpd. It says which copies are current; without it, find that out, make ' +
      'the definition name the current ones, move the file away, restart the agent and protect the domain again',
    cause,
  });
}
