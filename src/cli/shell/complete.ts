import type { Command } from '../command.ts';
import { dashed } from '../command.ts';
import { quoteWord, readLine } from './words.ts';

/** What completion asks of the world; each may fail, and then nothing is offered. */
export interface Lookups {
  /** The names of all domains. */
  domains(): Promise<string[]>;
  /** The protected disks of a domain. */
  disks(domain: string): Promise<string[]>;
}

/** The shell's own words, which are no commands of the agent's. */
export const shellWords = ['help', 'quit', 'exit'] as const;

/** The words that may stand at the end of this line, written as the shell reads them, and the end that they would replace. */
export async function complete(
  text: string,
  commands: readonly Command[],
  lookups: Lookups,
): Promise<{ words: string[]; end: string }> {
  const { commands: all, open } = readLine(text);
  const startsAnew = all.length === 0 || /;\s*$/.test(text);
  const words = startsAnew ? [] : (all.at(-1) ?? []);
  const before = open === null ? words : words.slice(0, -1);
  const candidates = await candidatesAfter(before, open ?? '', commands, lookups).catch(() => []);
  const fitting = candidates.filter((candidate) => candidate.startsWith(open ?? ''));
  return { words: fitting.map((word) => `${quoteWord(word)} `), end: open === null ? '' : lastWordAsWritten(text) };
}

async function candidatesAfter(
  before: readonly string[],
  open: string,
  commands: readonly Command[],
  lookups: Lookups,
): Promise<string[]> {
  const [name, ...args] = before;
  if (name === undefined) return [...commands.map((command) => command.name), ...shellWords];
  if (name === 'help') return args.length === 0 ? commands.map((command) => command.name) : [];
  const command = commands.find((one) => one.name === name);
  if (command === undefined) return [];
  const options = Object.entries(command.options).flatMap(([key, spec]) =>
    spec.positional ? [] : { flag: dashed(key), spec },
  );
  const wanting = options.find(({ flag, spec }) => flag === args.at(-1) && spec.value !== undefined);
  const domain = domainIn(args, options);
  if (wanting !== undefined) {
    const { value, choices } = wanting.spec;
    if (choices !== undefined) return [...choices];
    if (value === 'DEV') return domain === undefined ? [] : lookups.disks(domain);
    return value === 'DOMAIN' ? lookups.domains() : [];
  }
  if (open.startsWith('-') || command.domain === 'none' || domain !== undefined)
    return options.flatMap(({ flag }) => (args.includes(flag) ? [] : flag));
  return lookups.domains();
}

/** The first argument that is neither an option nor the value of one. */
function domainIn(
  args: readonly string[],
  options: readonly { flag: string; spec: { value?: string } }[],
): string | undefined {
  return args.find((arg, index) => {
    const previous = options.find(({ flag }) => flag === args[index - 1]);
    return !arg.startsWith('-') && previous?.spec.value === undefined;
  });
}

/** From the last blank or semicolon that stands outside of quotes. */
function lastWordAsWritten(text: string): string {
  for (let start = text.length - 1; start > 0; start--) {
    const { open, missing } = readLine(text.slice(0, start));
    if (open === null && missing === null) return text.slice(start);
  }
  return text;
}
