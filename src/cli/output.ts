import type { ExitCode } from './exit.ts';
import type { CdpError } from '../errors.ts';

export interface OutputStream {
  write(text: string): unknown;
  isTTY?: boolean;
  columns?: number;
}

/** Select Graphic Rendition of ECMA-48: what begins a style, and what ends it. */
const styles = { red: [31, 39], yellow: [33, 39], green: [32, 39], bold: [1, 22], dim: [2, 22] } as const;

export type Style = keyof typeof styles;

/** Where a command's results go: text for people, or JSON for programs. */
export interface Output {
  readonly json: boolean;
  /** stdout is a terminal: one line can be written again and again. */
  readonly tty: boolean;
  /** Width of the terminal. */
  readonly columns: number;
  line(text: string): void;
  /** Text without a line's end, for a line that will be overwritten. */
  raw(text: string): void;
  /** To stderr; people only. */
  warn(text: string): void;
  /** One JSON value on one line. */
  value(value: unknown): void;
  style(style: Style, text: string): string;
}

export interface OutputOptions {
  json: boolean;
  stdout: OutputStream;
  stderr: OutputStream;
  env: Record<string, string | undefined>;
}

export function createOutput({ json, stdout, stderr, env }: OutputOptions): Output {
  const tty = stdout.isTTY === true;
  const coloured = tty && !env['NO_COLOR'];
  return {
    json,
    tty,
    // 0 on a terminal whose size nobody has set.
    columns: stdout.columns === undefined || stdout.columns === 0 ? 80 : stdout.columns,
    line: (text) => void stdout.write(`${text}\n`),
    raw: (text) => void stdout.write(text),
    warn: (text) => void stderr.write(`${text}\n`),
    value: (value) => void stdout.write(`${JSON.stringify(value)}\n`),
    style: (style, text) => (coloured ? `\x1b[${styles[style][0]}m${text}\x1b[${styles[style][1]}m` : text),
  };
}

/** Tells an error: what and why, then what to do; returns the exit code for it. */
export function reportError(error: CdpError, options: OutputOptions, code: ExitCode): ExitCode {
  const { code: name, message, hint } = error;
  if (options.json) {
    options.stdout.write(`${JSON.stringify({ error: { code: name, message, hint: hint ?? null } })}\n`);
    return code;
  }
  options.stderr.write(`error: ${message}\n`);
  if (hint !== undefined) options.stderr.write(`hint: ${hint}\n`);
  return code;
}
