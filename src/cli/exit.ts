import { CdpError, RefusedError, UsageError, errorText } from '../errors.ts';
import { AgentUnreachableError } from '../control/transport.ts';

/** Fixed: scripts rely on them. */
export const exitCodes = {
  done: 0,
  failed: 1,
  usage: 2,
  unreachable: 3,
  refused: 4,
  /** `status --check` only. */
  degraded: 10,
  broken: 11,
  /** As a shell reports a program that Ctrl-C ended. */
  interrupted: 130,
} as const;

export type ExitCode = (typeof exitCodes)[keyof typeof exitCodes];

export function exitCodeOf(error: CdpError): ExitCode {
  if (error instanceof AgentUnreachableError) return exitCodes.unreachable;
  if (error instanceof RefusedError) return exitCodes.refused;
  if (error instanceof UsageError) return exitCodes.usage;
  return exitCodes.failed;
}

/** Whatever was thrown, as something that can be told to the user. */
export function asCdpError(error: unknown): CdpError {
  if (error instanceof CdpError) return error;
  return new CdpError({ code: 'failed', message: errorText(error), cause: error });
}
