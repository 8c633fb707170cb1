import { readFile } from 'node:fs/promises';
import { join } from 'node:path';

/**
 * A file a domain, `starts/UUID` in the store, which hooks/qemu alone writes, durably, before each start of a protected domain, agent up
 * or down: a record that has not taken this start into account says of the mirror what was true before it. Answers the name
 * of the last start that the hook saw; null if it saw none.
 */
export async function lastStart(storePath: string, uuid: string): Promise<string | null> {
  try {
    return (await readFile(join(storePath, 'starts', uuid), 'utf8')).trim();
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null;
    throw error;
  }
}
