import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { closeSync, openSync, readFileSync } from 'node:fs';
import { within } from './wait.ts';

export interface Finished {
  /** Exit code; 128 and the signal's number if it was killed, as a shell says it. */
  code: number;
  stdout: string;
  stderr: string;
}

/** Runs a program to its end, whatever its exit code; killed after `timeoutMs` (default 60 s). */
export async function run(
  program: string,
  args: readonly string[],
  options: { timeoutMs?: number; env?: NodeJS.ProcessEnv; cwd?: string } = {},
): Promise<Finished> {
  const { timeoutMs = 60_000, ...rest } = options;
  return new Promise((resolve, reject) => {
    execFile(
      program,
      args,
      { ...rest, timeout: timeoutMs, killSignal: 'SIGKILL', maxBuffer: 64 << 20 },
      (error, stdout, stderr) => {
        if (error === null) resolve({ code: 0, stdout, stderr });
        else if (typeof error.code === 'number') resolve({ code: error.code, stdout, stderr });
        else if (error.killed === true) resolve({ code: 137, stdout, stderr: `${stderr}killed after ${timeoutMs} ms` });
        else if (error.signal) resolve({ code: 128, stdout, stderr: `${stderr}killed by ${error.signal}` });
        else reject(new Error(`${program} could not be run`, { cause: error }));
      },
    );
  });
}

/** Runs a program that must succeed, and returns its stdout. */
export async function must(program: string, ...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await run(program, args);
  if (code !== 0) throw new Error(`${program} ${args.join(' ')}: exit ${code}\n${stderr}${stdout}`);
  return stdout;
}

/**
 * A process that goes on until it is told to end. Its stdout and stderr go to `logPath`. It is killed with the process
 * that started it (setpriv --pdeathsig), even when that one is killed, unless it is itself stopped (SIGSTOP) at the time.
 */
export class Daemon {
  readonly child: ChildProcess;
  readonly exited: Promise<void>;
  readonly #logPath: string;

  constructor(program: string, args: readonly string[], options: { logPath: string; env?: NodeJS.ProcessEnv }) {
    this.#logPath = options.logPath;
    const log = openSync(options.logPath, 'a', 0o600);
    this.child = spawn('setpriv', ['--pdeathsig', 'KILL', '--', program, ...args], {
      stdio: ['ignore', log, log],
      env: options.env ?? process.env,
    });
    closeSync(log);
    this.exited = new Promise((resolve) => {
      this.child.once('exit', () => resolve());
      this.child.once('error', () => resolve());
    });
  }

  get pid(): number {
    if (this.child.pid === undefined) throw new Error('the process could not be started');
    return this.child.pid;
  }

  get running(): boolean {
    return this.child.pid !== undefined && this.child.exitCode === null && this.child.signalCode === null;
  }

  /** Signals it and waits for its end; one that ignores SIGTERM for 5 s is killed. */
  async end(signal: 'SIGTERM' | 'SIGKILL' = 'SIGTERM'): Promise<void> {
    if (!this.running) return;
    this.child.kill(signal);
    try {
      await within(`the end of process ${this.pid}`, this.exited, 5000);
    } catch {
      this.child.kill('SIGKILL');
      await within(`the end of killed process ${this.pid}`, this.exited, 5000, () => this.logTail());
    }
  }

  /** The last lines of what it said, for error messages. */
  logTail(): string {
    return tail(this.#logPath);
  }
}

/** The last 40 lines of a file; empty if there is none. */
export function tail(path: string): string {
  try {
    return `--- ${path}\n${readFileSync(path, 'utf8').split('\n').slice(-40).join('\n')}`;
  } catch {
    return '';
  }
}
