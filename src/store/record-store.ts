import { mkdir, readdir, readFile, rm } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { z } from 'zod';
import { CdpError } from '../errors.ts';
import { syncFolder, writeDurably } from './durable-file.ts';

/**
 * One JSON file a domain, `domains/UUID.json` in the store. What it says outlives the agent, libvirt's XML and a power cut, and
 * is the authority on which copies are current.
 */
export class RecordStore<Schema extends z.ZodType> {
  readonly #folder: string;
  readonly #schema: Schema;

  private constructor(folder: string, schema: Schema) {
    this.#folder = folder;
    this.#schema = schema;
  }

  static async open<Schema extends z.ZodType>(storePath: string, schema: Schema): Promise<RecordStore<Schema>> {
    const folder = join(storePath, 'domains');
    await mkdir(folder, { recursive: true, mode: 0o700 });
    return new RecordStore(folder, schema);
  }

  /** All records. @throws CdpError `record-invalid` naming the file: a record that can't be understood must not be guessed. */
  async all(): Promise<z.infer<Schema>[]> {
    return Promise.all((await this.#names()).map((name) => this.#read(join(this.#folder, name))));
  }

  /** All records that can be read, and of the others the UUIDs, with what is wrong. */
  async readable(): Promise<{ records: z.infer<Schema>[]; unreadable: Map<string, Error> }> {
    const records: z.infer<Schema>[] = [];
    const unreadable = new Map<string, Error>();
    for (const name of await this.#names()) {
      try {
        records.push(await this.#read(join(this.#folder, name)));
      } catch (error) {
        unreadable.set(basename(name, '.json'), error as Error);
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

  async #read(path: string): Promise<z.infer<Schema>> {
    try {
      return this.#schema.parse(JSON.parse(await readFile(path, 'utf8')));
    } catch (cause) {
      throw new CdpError({
        code: 'record-invalid',
        message: `the record ${path} can't be read: ${cause instanceof z.ZodError ? z.prettifyError(cause) : String(cause)}`,
        hint: 'restore it from a backup, or move it away if the domain no longer exists; it says which copies are current',
        cause,
      });
    }
  }
}
