import type { AgentClient } from '../control/client.ts';
import type { ExitCode } from './exit.ts';
import type { Output } from './output.ts';

/** What a command works with. */
export interface Context {
  client: AgentClient;
  out: Output;
  /** Ctrl-C. */
  interrupt: AbortSignal;
  /** Asks whoever sits at the terminal; null if nobody does: then the options say it all. */
  ask: ((question: string) => Promise<boolean>) | null;
}

export interface OptionSpec {
  summary: string;
  /** The placeholder of the option's value; an option without one is a flag. */
  value?: string;
  choices?: readonly string[];
  /** The command is wrong without it. */
  required?: true;
  /** Its value alone is written, after the DOMAIN. */
  positional?: true;
}

type OptionSpecs = Readonly<Record<string, OptionSpec>>;

type OptionValue<S extends OptionSpec> = S extends { value: string }
  ? (S extends { choices: readonly (infer C)[] } ? C : string) | (S extends { required: true } ? never : undefined)
  : boolean;

export type OptionValues<S extends OptionSpecs> = { [K in keyof S]: OptionValue<S[K]> };

type DomainValue = { required: string; optional: string | undefined; none: undefined };

/** One command as data: the command line, the shell, its completion and the manual pages are made from it. */
export interface CommandSpec<D extends keyof DomainValue, S extends OptionSpecs> {
  name: string;
  /** One line, for the list of commands. */
  summary: string;
  /** What else a reader of `--help` should know. */
  description?: string;
  /** Whether a DOMAIN follows the command's name. */
  domain: D;
  /** By name in camel case: `overwriteMirror` is written --overwrite-mirror. */
  options: S;
  run(context: Context, domain: DomainValue[D], options: OptionValues<S>): Promise<ExitCode>;
}

/** A command whose options' types nobody needs any more. */
export interface Command extends Omit<CommandSpec<keyof DomainValue, OptionSpecs>, 'run'> {
  run(context: Context, domain: string | undefined, options: Record<string, unknown>): Promise<ExitCode>;
}

export function defineCommand<const S extends OptionSpecs, D extends keyof DomainValue>(
  spec: CommandSpec<D, S>,
): Command {
  return {
    ...spec,
    run: (context, domain, options) => spec.run(context, domain as DomainValue[D], options as OptionValues<S>),
  };
}

/** The option of this name, as it is written: `overwriteMirror` is --overwrite-mirror. */
export function dashed(name: string): string {
  return `--${name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`;
}

/** The arguments that were given, without the keys of those that were not: the API takes no `undefined`. */
export function given<T extends Record<string, unknown>>(values: T): { [K in keyof T]?: Exclude<T[K], undefined> } {
  return Object.fromEntries(Object.entries(values).filter(([, value]) => value !== undefined && value !== false)) as {
    [K in keyof T]?: Exclude<T[K], undefined>;
  };
}
