import { readFileSync, readdirSync } from 'node:fs';
import { dirname, join } from 'node:path';

/**
 * Where relays are noted: beside the agent's socket, so that they outlive the agent as they do themselves, and no boot of the host. One
 * folder each, `UUID-DEV`.
 */
export function relaysFolder(agentSocket: string): string {
  return join(dirname(agentSocket), 'relays');
}

export function relayFolder(folder: string, uuid: string, dev: string): string {
  return join(folder, `${uuid}-${dev}`);
}

/** In a relay's folder: where it serves the mirror. */
export function relaySocket(folder: string): string {
  return join(folder, 'socket');
}

/** The folders of all relays, running or not, of a domain if it is given. */
export function relayFoldersIn(folder: string, uuid?: string): string[] {
  const prefix = uuid === undefined ? '' : `${uuid}-`;
  try {
    return readdirSync(folder).flatMap((name) => (name.startsWith(prefix) ? join(folder, name) : []));
  } catch {
    return [];
  }
}

/** In a relay's folder: its own line of /proc/PID/stat, which it has left there before anything else. */
export const processFile = 'process';

/**
 * The relay of a folder; null if it does not run. A number of a process is used again, with the same time of its start it is not. Read at
 * once, from memory: node's threads for files may all wait for a store that hangs.
 */
export function relayPid(folder: string): number | null {
  const noted = readStat(join(folder, processFile));
  if (noted === null) return null;
  const now = readStat(`/proc/${noted.pid}/stat`);
  return now !== null && now.startTicks === noted.startTicks && !hasEnded(now) ? noted.pid : null;
}

/** Relays are ended at once, of a domain if it is given: nothing that hangs in one comes after what is written from now on. */
export function killRelays(folder: string, uuid?: string): void {
  for (const one of relayFoldersIn(folder, uuid)) {
    const pid = relayPid(one);
    if (pid !== null) signal(pid, 'SIGKILL');
  }
}

/** To a process that may just have ended. */
export function signal(pid: number, name: NodeJS.Signals): void {
  try {
    process.kill(pid, name);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
  }
}

interface Stat {
  pid: number;
  state: string;
  startTicks: string;
}

/** proc(5): the name in parentheses may hold anything; the state comes after it, the start is the 20th from there. */
function readStat(path: string): Stat | null {
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch {
    return null;
  }
  const pid = Number.parseInt(text, 10);
  const fields = text
    .slice(text.lastIndexOf(')') + 1)
    .trim()
    .split(' ');
  const [state, startTicks] = [fields[0], fields[19]];
  return pid > 0 && state !== undefined && startTicks !== undefined ? { pid, state, startTicks } : null;
}

/** A zombie holds nothing open any more. */
function hasEnded({ state }: Stat): boolean {
  return state === 'Z' || state === 'X';
}
