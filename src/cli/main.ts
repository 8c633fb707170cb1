/** `virt-cdp`: see program.ts for the command line, and commands.ts for the commands. */
import { askOnTerminal } from './ask.ts';
import { exitCodes } from './exit.ts';
import { runCommandLine } from './program.ts';

/** A command that is not waiting for anything it could leave is ended by force after this. */
const graceMs = 500;

const interrupt = new AbortController();
process.on('SIGINT', () => {
  interrupt.abort();
  setTimeout(() => process.exit(exitCodes.interrupted), graceMs).unref();
});

// `virt-cdp events | head`: whoever reads has had enough.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  process.exit(error.code === 'EPIPE' ? exitCodes.done : exitCodes.failed);
});

const { stdin, stdout, stderr, env } = process;
const ask = stdin.isTTY && stderr.isTTY ? askOnTerminal : null;
const input = { lines: stdin, screen: stdin.isTTY && stdout.isTTY ? stdout : null };
const surroundings = { stdout, stderr, env, interrupt: interrupt.signal, ask, input };
void runCommandLine(process.argv.slice(2), surroundings).then((code) => {
  process.exitCode = code;
});
