import { UsageError } from '../../errors.ts';

/** What a line of the shell says, as far as it goes. */
export interface Line {
  /** The words of each command; commands are separated by semicolons. None is empty. */
  commands: string[][];
  /** The word that the line ends in the middle of, or right after; null if a blank or a semicolon is the last. */
  open: string | null;
  /** What is missing to a whole line: the quote that was not closed, or a character after a backslash. */
  missing: string | null;
}

/**
 * Reads a line as virsh does: blanks separate words; single quotes keep everything, within double quotes and outside a backslash
 * keeps the next character; a semicolon ends a command, and # at the beginning of a word a line.
 */
export function readLine(text: string): Line {
  const commands: string[][] = [[]];
  let word: string | null = null;
  let quote: string | null = null;
  let escaped = false;
  const endWord = (): void => {
    if (word !== null) commands.at(-1)?.push(word);
    word = null;
  };
  for (const character of text) {
    if (escaped) {
      word = (word ?? '') + character;
      escaped = false;
    } else if (character === '\\' && quote !== "'") {
      word ??= '';
      escaped = true;
    } else if (character === quote) quote = null;
    else if (quote !== null) word = (word ?? '') + character;
    else if (character === "'" || character === '"') {
      word ??= '';
      quote = character;
    } else if (/\s/.test(character)) endWord();
    else if (character === ';') {
      endWord();
      commands.push([]);
    } else if (character === '#' && word === null) break;
    else word = (word ?? '') + character;
  }
  const open = word;
  endWord();
  return {
    commands: commands.filter((words) => words.length > 0),
    open,
    missing: escaped ? 'a character after the backslash' : quote === null ? null : `the closing ${quote}`,
  };
}

/** The words of each command of a whole line. @throws UsageError `usage` if something is missing at its end */
export function splitLine(text: string): string[][] {
  const { commands, missing } = readLine(text);
  if (missing === null) return commands;
  throw new UsageError({ code: 'usage', message: `the line can't be read: ${missing} is missing` });
}

/** The word as it has to be written, so that splitLine() reads it. */
export function quoteWord(word: string): string {
  return /^[\w./:@%+,=-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}
