import { readFile } from 'node:fs/promises';
import { CdpError, UsageError } from '../errors.ts';

/** The text of a file that was given as an option's value, if one was. */
export async function readXml(path: string | undefined): Promise<string | undefined> {
  if (path === undefined) return undefined;
  try {
    return await readFile(path, 'utf8');
  } catch (cause) {
    const message = `cannot read the XML file ${path}: ${(cause as Error).message}`;
    throw new CdpError({ code: 'cannot-read-file', message, cause });
  }
}

/** @throws UsageError if more than one of these options was given. */
export function onlyOneOf(options: Record<string, string | undefined>): void {
  const names = Object.keys(options).filter((name) => options[name] !== undefined);
  if (names.length < 2) return;
  throw new UsageError({ code: 'usage', message: `only one of ${names.join(' and ')} can be given` });
}
