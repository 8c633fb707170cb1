import { createInterface, type Interface } from 'node:readline';
import type { Readable, Writable } from 'node:stream';
import type { AgentClient } from '../../control/client.ts';
import { commands } from '../commands.ts';
import { asCdpError, exitCodeOf, exitCodes, type ExitCode } from '../exit.ts';
import { complete, type Lookups } from './complete.ts';
import { historyPath, historySize, readHistory, writeHistory } from './history.ts';
import { splitLine } from './words.ts';

/** Where the shell's lines come from. */
export interface ShellInput {
  lines: Readable;
  /** The terminal at which they are typed; null if nobody types them. */
  screen: Writable | null;
}

export interface ShellOptions {
  input: ShellInput;
  env: Record<string, string | undefined>;
  /** For completion. */
  client: AgentClient;
  /** Runs one command. `ask` asks whoever sits at the terminal; null if nobody does. */
  run(words: string[], interrupt: AbortSignal, ask: ((question: string) => Promise<boolean>) | null): Promise<ExitCode>;
  /** Tells of what is wrong with a line itself. */
  report(error: ReturnType<typeof asCdpError>): void;
}

const prompt = 'virt-cdp # ';

/** Reads commands until the end of the input, `quit` or `exit`; the exit code is the last command's. */
export async function runShell(options: ShellOptions): Promise<ExitCode> {
  const { lines, screen } = options.input;
  const path = historyPath(options.env);
  const terminal = screen !== null;
  const reader = createInterface({
    input: lines,
    ...(screen !== null && { output: screen, history: readHistory(path) }),
    terminal,
    prompt,
    historySize,
    completer: (line: string, done: (error: null, result: [string[], string]) => void) => {
      void complete(line, commands, lookupsOf(options.client)).then(({ words, end }) => done(null, [words, end]));
    },
  });
  if (screen !== null) {
    screen.write('virt-cdp, the interactive shell: help lists the commands, quit leaves it\n');
    reader.on('history', (newestFirst: string[]) => writeHistory(path, newestFirst));
  }
  let code: ExitCode = exitCodes.done;
  for await (const line of linesOf(reader, terminal)) {
    const outcome = await runLine(line, reader, terminal, options);
    code = outcome.code ?? code;
    if (outcome.leave) break;
  }
  reader.close();
  return code;
}

/** Prompts, and gives the next line; lines that come while a command runs wait for their turn. */
async function* linesOf(reader: Interface, terminal: boolean): AsyncGenerator<string> {
  const waiting: string[] = [];
  let wake = (): void => undefined;
  const state = { closed: false };
  reader.on('line', (line) => {
    waiting.push(line);
    wake();
  });
  reader.on('close', () => {
    state.closed = true;
    wake();
  });
  for (;;) {
    if (waiting.length === 0 && !state.closed) {
      if (terminal) reader.prompt();
      const clear = (): void => {
        reader.write(null, { ctrl: true, name: 'e' });
        reader.write(null, { ctrl: true, name: 'u' });
        reader.prompt();
      };
      reader.on('SIGINT', clear);
      await new Promise<void>((resolve) => (wake = resolve));
      reader.off('SIGINT', clear);
    }
    const line = waiting.shift();
    if (line !== undefined) yield line;
    else if (state.closed) return;
  }
}

async function runLine(
  line: string,
  reader: Interface,
  terminal: boolean,
  options: ShellOptions,
): Promise<{ code: ExitCode | null; leave: boolean }> {
  let code: ExitCode | null = null;
  try {
    for (const words of splitLine(line)) {
      if (words.length === 1 && (words[0] === 'quit' || words[0] === 'exit')) return { code, leave: true };
      const interrupt = new AbortController();
      const stop = (): void => interrupt.abort();
      reader.on('SIGINT', stop);
      try {
        code = await options.run(words, interrupt.signal, terminal ? (question) => ask(reader, question) : null);
      } finally {
        reader.off('SIGINT', stop);
      }
      // As in virsh, what follows a command that failed is not done.
      if (code !== exitCodes.done) break;
    }
  } catch (error) {
    const told = asCdpError(error);
    options.report(told);
    code = exitCodeOf(told);
  }
  return { code, leave: false };
}

/** Everything but a yes is a no, also Ctrl-C and the end of the input. */
function ask(reader: Interface, question: string): Promise<boolean> {
  return new Promise((resolve) => {
    const left = new AbortController();
    const leave = (): void => left.abort();
    const done = (answer: boolean): void => {
      reader.off('SIGINT', leave);
      reader.off('close', leave);
      resolve(answer);
    };
    left.signal.addEventListener('abort', () => done(false));
    reader.once('SIGINT', leave).once('close', leave);
    reader.question(`${question} [y/N] `, { signal: left.signal }, (answer) => done(/^\s*y(es)?\s*$/i.test(answer)));
  });
}

function lookupsOf(client: AgentClient): Lookups {
  return {
    domains: async () => (await client.domains(true)).map(({ domain }) => domain),
    disks: async (domain) => (await client.domain(domain)).disks.map(({ dev }) => dev),
  };
}
