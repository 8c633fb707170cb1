import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { dirname, join } from 'node:path';

/** As many lines are kept. */
export const historySize = 500;

export function historyPath(env: Record<string, string | undefined>): string {
  return join(env['XDG_CACHE_HOME'] ?? join(env['HOME'] ?? homedir(), '.cache'), 'virt-cdp', 'history');
}

/** The newest first, as node:readline has it; nothing if there is none, or it can't be read. */
export function readHistory(path: string): string[] {
  try {
    return readFileSync(path, 'utf8').split('\n').filter(Boolean).reverse();
  } catch {
    return [];
  }
}

/** Best effort: a shell without a home works all the same. */
export function writeHistory(path: string, newestFirst: readonly string[]): void {
  try {
    mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
    writeFileSync(path, [...newestFirst].reverse().join('\n') + '\n', { mode: 0o600 });
  } catch {
    // See above.
  }
}
