import { CdpError } from '../errors.ts';
import { isLibvirtError, libvirtErrorCode } from '../libvirt/errors.ts';

/** A QMP command that is not answered by then is given up; QEMU may be waiting for a storage. */
const deadlineMs = 20_000;

/** libvirt answers it when QEMU does, or ends. */
const foreverMs = 24 * 60 * 60_000;

/**
 * The way to a QEMU's monitor, which may stop to answer for as long as a storage does.
 *
 * INVARIANT: while a command is not answered past its deadline, no other is sent. Each would hold one of libvirt's worker threads, of
 * which it has 20 for all domains.
 */
export class MonitorGate {
  readonly #send: (request: string, deadlineMs: number) => Promise<string>;
  readonly #changed: () => void;
  readonly #overdue = new Set<number>();

  /** `changed` is told when the monitor is found silent, and when it answers again. */
  constructor(send: (request: string, deadlineMs: number) => Promise<string>, changed: () => void) {
    this.#send = send;
    this.#changed = changed;
  }

  /** Since when a command waits for its answer, past its deadline: ISO time; null if none does. */
  get silentSince(): string | null {
    return this.#overdue.size === 0 ? null : new Date(Math.min(...this.#overdue)).toISOString();
  }

  /** @throws CdpError `monitor-silent`; what `send` throws */
  async send(request: string): Promise<string> {
    if (this.silentSince !== null) throw this.#silent();
    const sentAtMs = performance.timeOrigin + performance.now();
    const answer = this.#send(request, foreverMs);
    let timer: NodeJS.Timeout | undefined;
    const passed = new Promise<never>((_, reject) => {
      timer = setTimeout(() => {
        const wasSilent = this.silentSince !== null;
        this.#overdue.add(sentAtMs);
        if (!wasSilent) this.#changed();
        reject(this.#silent());
      }, deadlineMs);
    });
    const settled = (): void => {
      clearTimeout(timer);
      if (this.#overdue.delete(sentAtMs) && this.#overdue.size === 0) this.#changed();
    };
    answer.then(settled, (error: unknown) =>
      this.#overdue.has(sentAtMs) && isLocked(error) ? void this.#answered().then(settled) : settled(),
    );
    return Promise.race([answer, passed]);
  }

  /** Somebody else's command is what QEMU does not answer, and libvirt let none of ours through. */
  async #answered(): Promise<void> {
    for (;;) {
      try {
        await this.#send('{"execute":"query-status"}', foreverMs);
        return;
      } catch (error) {
        if (!isLocked(error)) return;
      }
    }
  }

  #silent(): CdpError {
    return new CdpError({
      code: 'monitor-silent',
      message: `QEMU has not answered its monitor since ${this.silentSince ?? ''}`,
      hint: 'it may be waiting for a storage, or be stopped: see whether the storage of all its disks answers',
    });
  }
}

/** libvirt waits 30 s for the domain's other command to end (src/qemu/qemu_domainjob.c: QEMU_JOB_WAIT_TIME). */
function isLocked(error: unknown): boolean {
  return isLibvirtError(error, libvirtErrorCode.operationTimeout);
}
