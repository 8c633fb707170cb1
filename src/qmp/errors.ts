/**
 * What QMP can answer instead of a result.
 *
 *   QmpError          QEMU refused a command: its class and description
 *   QmpTimeoutError   an awaited event or job did not come in time
 */

export class QmpError extends Error {
  readonly command: string;
  /** QEMU's error class, e.g. `GenericError`, `DeviceNotFound`. */
  readonly errorClass: string;
  readonly description: string;

  constructor(command: string, errorClass: string, description: string) {
    super(`QEMU refused ${command}: ${description}`);
    this.name = 'QmpError';
    this.command = command;
    this.errorClass = errorClass;
    this.description = description;
  }
}

export class QmpTimeoutError extends Error {
  constructor(awaited: string, deadlineMs: number) {
    super(`QEMU did not report ${awaited} within ${deadlineMs} ms`);
    this.name = 'QmpTimeoutError';
  }
}
