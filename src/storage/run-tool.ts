import { spawn, type ChildProcessByStdio } from 'node:child_process';
import type { Socket } from 'node:net';
import type { Readable } from 'node:stream';
import { CdpError } from '../errors.ts';

export interface ToolOutcome {
  /** The exit status; null if a signal ended it, or the deadline passed. */
  status: number | null;
  stdout: string;
  stderr: string;
  deadlinePassed: boolean;
  /** Kept when the process is gone: the kernel may not let go of one that was killed. */
  ended: Promise<void>;
}

/** More than any of the tools has to say; what goes on past it is not kept. */
const maxOutputBytes = 1024 * 1024;

/**
 * Runs a program that touches storage. It answers within the deadline even if the program sits in the kernel and can't
 * be killed (a hung NFS server): such a process is left behind, and no thread of this one with it. `thirdFd` becomes its descriptor 3.
 * @throws CdpError `tool-missing` if the program is not installed.
 */
export function runTool(
  program: string,
  args: string[],
  options: { deadlineMs: number; thirdFd?: number | Socket },
): Promise<ToolOutcome> {
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, {
      cwd: '/',
      env: toolEnvironment(),
      stdio: ['ignore', 'pipe', 'pipe', ...(options.thirdFd === undefined ? [] : [options.thirdFd])],
    }) as ChildProcessByStdio<null, Readable, Readable>;
    const ended = new Promise<void>((gone) => child.once('exit', () => gone()));
    const output = { stdout: '', stderr: '' };
    for (const stream of ['stdout', 'stderr'] as const) {
      child[stream].setEncoding('utf8').on('data', (text: string) => {
        if (output[stream].length < maxOutputBytes) output[stream] += text;
      });
    }
    const timer = setTimeout(
      () => {
        child.kill('SIGKILL');
        child.stdout.destroy();
        child.stderr.destroy();
        child.unref();
        resolve({ status: null, ...output, deadlinePassed: true, ended });
      },
      Math.max(0, options.deadlineMs),
    );
    child.on('error', (error: NodeJS.ErrnoException) => {
      clearTimeout(timer);
      reject(cantRun(program, error));
    });
    child.on('close', (status) => {
      clearTimeout(timer);
      resolve({ status, ...output, deadlinePassed: false, ended });
    });
  });
}

/** Nothing else of the agent's own. */
export function toolEnvironment(): NodeJS.ProcessEnv {
  return { PATH: process.env['PATH'] ?? '/usr/sbin:/usr/bin:/sbin:/bin', LC_ALL: 'C' };
}

/** What a tool said, on one line, without its name and the json: filename. */
export function toolWords(output: string): string {
  return output
    .replaceAll(/(Could not open )?'?json:\{.*\}'?: /g, '')
    .split('\n')
    .map((line) => line.replace(/^(qemu-img|qemu-io|qemu-nbd|sh|realpath): /, '').trim())
    .filter((line) => line !== '')
    .join('; ')
    .slice(0, 500);
}

/** The package that has the programs whose names begin with qemu-. */
export const qemuToolsHint = 'install qemu-utils (Debian, Ubuntu) or qemu-img (Fedora, RHEL)';

function cantRun(program: string, error: NodeJS.ErrnoException): CdpError {
  if (error.code === 'ENOENT') return toolMissing(program, error);
  return new CdpError({
    code: 'tool-failed',
    message: `${program} could not be run: ${error.message}`,
    cause: error,
  });
}

export function toolMissing(program: string, cause?: Error): CdpError {
  return new CdpError({
    code: 'tool-missing',
    message: `${program} could not be run: it is not installed`,
    ...(program.startsWith('qemu-') && { hint: qemuToolsHint }),
    ...(cause !== undefined && { cause }),
  });
}
