import { createInterface } from 'node:readline/promises';

/** A question on stderr, answered on stdin; everything but a yes is a no, also the end of the input and Ctrl-C. */
export async function askOnTerminal(question: string): Promise<boolean> {
  const terminal = createInterface({ input: process.stdin, output: process.stderr });
  const left = new AbortController();
  terminal.once('close', () => left.abort()).once('SIGINT', () => terminal.close());
  try {
    const answer = await terminal.question(`${question} [y/N] `, { signal: left.signal });
    return /^\s*y(es)?\s*$/i.test(answer);
  } catch {
    return false;
  } finally {
    terminal.close();
  }
}
