/**
 * What can go wrong, as the user is told of it.
 *
 *   CdpError            what was attempted, on what, why it failed, what to do
 *     RefusedError      refused for the data's safety: another flag, named in the hint, would be needed (exit 4)
 *     UsageError        the request itself is wrong, or wrong in this state
 */

export interface ErrorParts {
  /** Stable and documented, e.g. `mirror-too-small`. */
  code: string;
  /** One sentence: what was attempted on what, and why it failed. */
  message: string;
  /** What to do about it, as a sentence or a command line. */
  hint?: string;
  cause?: unknown;
}

export class CdpError extends Error {
  readonly code: string;
  readonly hint: string | undefined;

  constructor(parts: ErrorParts) {
    super(parts.message, { cause: parts.cause });
    this.name = new.target.name;
    this.code = parts.code;
    this.hint = parts.hint;
  }
}

export class RefusedError extends CdpError {}

export class UsageError extends CdpError {}

/** As `errorText`, and what to do about it, in one line. */
export function errorAndHint(error: unknown): string {
  const hint = error instanceof CdpError && error.hint !== undefined ? `; ${error.hint}` : '';
  return `${errorText(error)}${hint}`;
}

/** The text of whatever was thrown, with the texts of its causes. */
export function errorText(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  return error.cause instanceof Error ? `${error.message}: ${errorText(error.cause)}` : error.message;
}
