import { Command as Commander, CommanderError, Option } from 'commander';
import { AgentClient, StreamBrokenError } from '../control/client.ts';
import { defaultSocketPath } from '../control/transport.ts';
import { version } from '../control/version.ts';
import { UsageError } from '../errors.ts';
import { dashed, type Command, type OptionSpec } from './command.ts';
import { commands } from './commands.ts';
import type { ExitCode } from './exit.ts';
import { asCdpError, exitCodeOf, exitCodes } from './exit.ts';
import type { OutputStream } from './output.ts';
import { createOutput, reportError } from './output.ts';
import { runShell, type ShellInput, type ShellOptions } from './shell/shell.ts';

/** What surrounds the command: tests bring their own. */
export interface Surroundings {
  stdout: OutputStream;
  stderr: OutputStream;
  env: Record<string, string | undefined>;
  interrupt: AbortSignal;
  /** Asks whoever sits at the terminal; null if nobody does. */
  ask: ((question: string) => Promise<boolean>) | null;
  /** What the shell reads, which is begun where no command is given; null for none: then the help is shown. */
  input: ShellInput | null;
}

/** Runs `virt-cdp` with these arguments (those after the program's name) and returns its exit code. */
export async function runCommandLine(argv: readonly string[], surroundings: Surroundings): Promise<ExitCode> {
  let code: ExitCode = exitCodes.done;
  const program = createProgram(surroundings, (result) => (code = result));
  try {
    const { operands, unknown } = program.parseOptions([...argv]);
    if (surroundings.input !== null && operands.length === 0 && unknown.length === 0)
      return await runShell(shellOptions(argv, program, surroundings, surroundings.input));
    await program.parseAsync(argv, { from: 'user' });
    return code;
  } catch (error) {
    if (error instanceof CommanderError && error.exitCode === 0) return exitCodes.done;
    // `commander.help` is the help that was printed because no command was given.
    if (error instanceof CommanderError && error.code === 'commander.help') return exitCodes.usage;
    const told = error instanceof CommanderError ? usageError(error) : asCdpError(error);
    // After a stream of JSON objects on stdout, an error there would look like one of them.
    const json = argv.includes('--json') && !(told instanceof StreamBrokenError);
    return reportError(told, { json, ...surroundings }, exitCodeOf(told));
  }
}

/** Each line is a command line, after the global options that the shell was begun with. */
function shellOptions(
  globals: readonly string[],
  program: Commander,
  surroundings: Surroundings,
  input: ShellInput,
): ShellOptions {
  const { env } = surroundings;
  const { socket, json } = program.opts<GlobalOptions>();
  return {
    input,
    env,
    client: new AgentClient({ socketPath: socket }),
    run: (words, interrupt, ask) =>
      runCommandLine([...globals, ...words], { ...surroundings, interrupt, ask, input: null }),
    report: (error) => void reportError(error, { json, ...surroundings }, exitCodeOf(error)),
  };
}

interface GlobalOptions {
  socket: string;
  json: boolean;
}

function createProgram(surroundings: Surroundings, ended: (code: ExitCode) => void): Commander {
  const { stdout, stderr, env, interrupt, ask } = surroundings;
  const program = new Commander('virt-cdp')
    .description("keeps a second, current copy of a domain's disks, and moves the running domain onto it")
    .version(version)
    .addOption(
      new Option('--socket <PATH>', "the agent's socket (or VIRT_CDP_SOCKET)").default(
        env['VIRT_CDP_SOCKET'] ?? defaultSocketPath,
      ),
    )
    .option('--json', 'results and errors as JSON on stdout', false)
    .configureOutput({
      writeOut: (text) => void stdout.write(text),
      writeErr: (text) => void stderr.write(text),
      // Errors are told in one place, for --json needs them in another form.
      outputError: () => undefined,
    })
    .exitOverride();
  for (const command of commands) {
    const sub = program.command(command.name).summary(command.summary);
    sub.description([command.summary, command.description].filter(Boolean).join('\n\n'));
    if (command.domain === 'required') sub.argument('<DOMAIN>', 'name, UUID or id');
    if (command.domain === 'optional') sub.argument('[DOMAIN]', 'name, UUID or id');
    for (const [name, spec] of Object.entries(command.options))
      if (spec.positional) sub.argument(`<${spec.value ?? name}>`, spec.summary);
      else sub.addOption(commanderOption(name, spec));
    sub.action(async () => {
      const { socket, json } = program.opts<GlobalOptions>();
      const out = createOutput({ json, stdout, stderr, env });
      const client = new AgentClient({ socketPath: socket });
      ended(
        await command.run({ client, out, interrupt, ask }, sub.args[0], {
          ...optionValues(command, sub.opts()),
          ...positionals(command, sub.args),
        }),
      );
    });
  }
  return program;
}

function commanderOption(name: string, spec: OptionSpec): Option {
  const option = new Option(spec.value === undefined ? dashed(name) : `${dashed(name)} <${spec.value}>`, spec.summary);
  if (spec.choices) option.choices(spec.choices);
  return option.makeOptionMandatory(spec.required ?? false);
}

/** Values by the names of the command's own table; commander turns --no-wait into `wait`. */
function optionValues(command: Command, opts: Record<string, unknown>): Record<string, unknown> {
  const entries = Object.entries(command.options).map(([name, spec]) => {
    if (/^no[A-Z]/.test(name)) return [name, opts[name.charAt(2).toLowerCase() + name.slice(3)] === false] as const;
    return [name, spec.value === undefined ? opts[name] === true : opts[name]] as const;
  });
  return Object.fromEntries(entries);
}

/** The values that are written without their options' names, after the DOMAIN. */
function positionals({ domain, options }: Command, args: string[]): Record<string, unknown> {
  const names = Object.keys(options).filter((name) => options[name]?.positional);
  const first = domain === 'none' ? 0 : 1;
  return Object.fromEntries(names.map((name, index) => [name, args[first + index]]));
}

function usageError(error: CommanderError): UsageError {
  return new UsageError({
    code: 'usage',
    message: error.message.replace(/^error: /, ''),
    hint: 'virt-cdp --help lists the commands, virt-cdp COMMAND --help the options of one',
  });
}
