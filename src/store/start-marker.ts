import { randomUUID } from 'node:crypto';
import { mkdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { writeDurably } from './durable-file.ts';

/**
 * A file a domain, `starts/UUID` in the store, written by the hook alone before each start of a protected domain, agent up or
 * down: a record that has not taken this start into account says of the mirror what was true before it.
 */
export async function markStart(storePath: string, uuid: string): Promise<void> {
  const folder = join(storePath, 'starts');
  await mkdir(folder, { recursive: true, mode: 0o700 });
  await writeDurably(join(folder, uuid), randomUUID() + '\n');
}

/** The name of the domain's last start that the hook saw; null if it saw none. */
export async function lastStart(storePath: string, uuid: string): Promise<string | null> {
  try {
    return (await readFile(join(storePath, 'starts', uuid), 'utf8')).trim();
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null;
    throw error;
  }
}
