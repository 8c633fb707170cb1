/**
 * What can go wrong between this client and the daemon.
 *
 *   RpcError                  everything below
 *     LibvirtError            the daemon answered the call with an error
 *     CallTimeoutError        no answer within the call's deadline
 *     ConnectionLostError     no connection, or it ended before the answer
 *     AuthRequiredError       the daemon wants an authentication that this client does not offer
 *     ProtocolError           bytes that are not libvirt's protocol, or a value that the protocol can't carry
 */
export class RpcError extends Error {
  constructor(message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = new.target.name;
  }
}

/** The values of virErrorNumber that callers tell apart (include/libvirt/virterror.h). */
export const libvirtErrorCode = {
  internalError: 1,
  noSupport: 3,
  invalidArg: 8,
  operationFailed: 9,
  xmlError: 27,
  domainExists: 28,
  noDomain: 42,
  authFailed: 45,
  operationInvalid: 55,
  invalidSecret: 65,
  noSecret: 66,
  configUnsupported: 67,
  operationTimeout: 68,
  hookScriptFailed: 70,
  argumentUnsupported: 74,
  noDomainMetadata: 80,
  blockCopyActive: 83,
  operationUnsupported: 84,
  deviceMissing: 99,
} as const;

export interface LibvirtErrorParts {
  /** virErrorNumber; see `libvirtErrorCode`. */
  code: number;
  /** virErrorDomain: the part of libvirt that reports it; 10 is the QEMU driver. */
  domain: number;
  /** virErrorLevel: 1 is a warning, 2 an error. */
  level: number;
  /** libvirt's own sentence. */
  text: string;
}

export class LibvirtError extends RpcError {
  readonly code: number;
  readonly domain: number;
  readonly level: number;
  readonly text: string;

  constructor(procedure: string, parts: LibvirtErrorParts) {
    super(`${procedure}: ${parts.text}`);
    this.code = parts.code;
    this.domain = parts.domain;
    this.level = parts.level;
    this.text = parts.text;
  }
}

/** True for the daemon's answer with this code, e.g. `isLibvirtError(error, libvirtErrorCode.noDomain)`. */
export function isLibvirtError(error: unknown, code: number): error is LibvirtError {
  return error instanceof LibvirtError && error.code === code;
}

export class CallTimeoutError extends RpcError {
  /** False: the daemon never saw the call. True: it may still carry it out. */
  readonly sent: boolean;

  constructor(procedure: string, deadlineMs: number, sent: boolean) {
    super(
      sent
        ? `${procedure}: libvirt did not answer within ${deadlineMs} ms`
        : `${procedure}: not sent within ${deadlineMs} ms, because every connection waits for earlier answers`,
    );
    this.sent = sent;
  }
}

export class ConnectionLostError extends RpcError {
  /** False: the daemon never saw the call. True: whether it was carried out is unknown. */
  readonly sent: boolean;

  constructor(message: string, options: { sent?: boolean; cause?: unknown } = {}) {
    super(message, { cause: options.cause });
    this.sent = options.sent ?? false;
  }
}

export class AuthRequiredError extends RpcError {}

export class ProtocolError extends RpcError {}
