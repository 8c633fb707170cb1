import { spawn } from 'node:child_process';
import { type Surroundings, runCommandLine } from '../../src/cli/program.ts';
import { errorAnswerSchema } from '../../src/control/schema.ts';

export interface Ended {
  code: number | null;
  stdout: string;
  stderr: string;
}

/** The code of the error that `--json` put on stdout. */
export function errorCode({ stdout }: Ended): string {
  return errorAnswerSchema.parse(JSON.parse(stdout)).error.code;
}

/** Runs the command line within this process. */
export async function runHere(argv: string[], changes: Partial<Surroundings> & { tty?: boolean } = {}): Promise<Ended> {
  const ended: Ended = { code: null, stdout: '', stderr: '' };
  const stdout = { write: (text: string) => (ended.stdout += text), isTTY: changes.tty ?? false, columns: 120 };
  const stderr = { write: (text: string) => (ended.stderr += text) };
  const interrupt = changes.interrupt ?? new AbortController().signal;
  ended.code = await runCommandLine(argv, {
    stdout,
    stderr,
    env: changes.env ?? {},
    interrupt,
    ask: changes.ask ?? null,
    input: changes.input ?? null,
  });
  return ended;
}

/** Runs the command line as users do, from its source. `seen` is called with all of stdout each time it grows. */
export function runProgram(
  argv: string[],
  env: Record<string, string> = {},
  seen?: (stdout: string, kill: (signal: NodeJS.Signals) => void) => void,
): Promise<Ended> {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, ['--import', 'tsx', 'src/cli/main.ts', ...argv], {
      env: { ...process.env, ...env },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    const ended: Ended = { code: null, stdout: '', stderr: '' };
    child.stdout.setEncoding('utf8').on('data', (chunk: string) => {
      ended.stdout += chunk;
      seen?.(ended.stdout, (signal) => child.kill(signal));
    });
    child.stderr.setEncoding('utf8').on('data', (chunk: string) => (ended.stderr += chunk));
    child.on('error', reject).on('close', (code) => resolve({ ...ended, code }));
  });
}
