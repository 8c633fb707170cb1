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

/**
 * What makes an error one of usage (exit 2): the command line is wrong by itself, whatever the domain's state. That is
 * `usage`, found by commander or from the options together; `bad-request`, arguments that don't fit the API's schema;
 * and of the codes that the agent (or the configuration's reader) gives, those that end in -invalid, -ambiguous or
 * -missing: a malformed or absent argument. Any other UsageError, e.g. `already-protected`, depends on how things are,
 * and is a failure (exit 1).
 */
const usageCode = /^(usage|bad-request)$|-(invalid|ambiguous|missing)$/;

export function exitCodeOf(error: CdpError): ExitCode {
  if (error instanceof AgentUnreachableError) return exitCodes.unreachable;
  if (error instanceof RefusedError) return exitCodes.refused;
  if (error instanceof UsageError && usageCode.test(error.code)) return exitCodes.usage;
  return exitCodes.failed;
}

/** Whatever was thrown, as something that can be told to the user. */
export function asCdpError(error: unknown): CdpError {
  if (error instanceof CdpError) return error;
  return new CdpError({ code: 'failed', message: errorText(error), cause: error });
}
