import winston from 'winston';

/** Structured log lines with constant keys (`domain`, `disk`, `step`, `event`, `error`, ...). */
export type Log = winston.Logger;

export type LogLevel = 'error' | 'warn' | 'info' | 'debug';

/** A log that writes one JSON object a line to stderr, where journald picks it up. */
export function createLog(level: LogLevel): Log {
  const { format } = winston;
  const log = winston.createLogger({ level, format: format.combine(format.timestamp(), format.json()) });
  log.pipe(new winston.transports.Stream({ stream: process.stderr }));
  return log;
}
