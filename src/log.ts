import winston from 'winston';

/** Structured log lines with constant keys (`domain`, `disk`, `step`, `event`, `error`, ...). */
export type Log = winston.Logger;

export type LogLevel = 'error' | 'warn' | 'info' | 'debug';

/** Under which winston's formats hand on the line (triple-beam's MESSAGE). */
const messageSymbol = Symbol.for('message');

/** As sd-daemon(3) and syslog(3) number them: journald takes a line's priority from `<N>` at its beginning. */
const priorities: Record<LogLevel, number> = { error: 3, warn: 4, info: 6, debug: 7 };

/** A log that writes one JSON object a line to stderr, under journald with the line's priority before it. */
export function createLog(level: LogLevel, env: Record<string, string | undefined> = process.env): Log {
  const { format } = winston;
  const json = format.combine(format.timestamp(), format.json());
  const prefixed = format.printf((info) => `<${priorities[info.level as LogLevel]}>${String(info[messageSymbol])}`);
  const log = winston.createLogger({
    level,
    format: env['JOURNAL_STREAM'] === undefined ? json : format.combine(json, prefixed),
  });
  log.pipe(new winston.transports.Stream({ stream: process.stderr }));
  return log;
}
