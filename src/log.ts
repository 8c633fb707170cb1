import winston from 'winston';

/** Structured log lines with constant keys (`domain`, `disk`, `step`, `event`, `error`, ...). */
export type Log = winston.Logger;

export type LogLevel = 'error' | 'warn' | 'info' | 'debug';

/** A log that writes one JSON object a line to stderr, where journald picks it up. */
export function createLog(level: LogLevel): Log {
  return winston.createLogger({
    level,
    format: winston.format.combine(winston.format.timestamp(), winston.format.json()),
    transports: [new winston.transports.Console({ stderrLevels: ['error', 'warn', 'info', 'debug'] })],
  });
}
