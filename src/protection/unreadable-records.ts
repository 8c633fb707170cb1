import { errorAndHint, type CdpError } from '../errors.ts';
import { lifecycleEvent } from '../libvirt/constants.ts';
import type { DomainRef } from '../libvirt/types.ts';
import type { Host } from './host.ts';
import type { DomainStatus } from './model.ts';
import { onUnreadable, type HookAnswer } from './starts/hook-answer.ts';

/**
 * Domains whose records can't be read. Which of their copies are current is not guessed: nothing is done to them until somebody has put
 * the record right and started the agent again.
 */
export class UnreadableRecords {
  readonly #host: Host;
  readonly #problems = new Map<string, CdpError>();
  /** As libvirt last knew them. */
  readonly #seen = new Map<string, DomainRef>();

  constructor(host: Host) {
    this.#host = host;
  }

  /** By the UUIDs of the domains. */
  add(problems: ReadonlyMap<string, CdpError>): void {
    for (const [uuid, problem] of problems) {
      this.#problems.set(uuid, problem);
      this.#host.log.error('a domain is not served', { uuid, error: errorAndHint(problem) });
    }
  }

  problemOf(uuid: string): CdpError | null {
    return this.#problems.get(uuid) ?? null;
  }

  /** To libvirt's hook; null if the domain's record is none of them. */
  answer(uuid: string, operation: string, domainXml: string): HookAnswer | null {
    const problem = this.#problems.get(uuid);
    return problem === undefined ? null : onUnreadable(operation, domainXml, problem);
  }

  /** @throws CdpError `record-invalid` if the domain's record is one of them */
  requireReadable(uuid: string): void {
    const problem = this.problemOf(uuid);
    if (problem !== null) throw problem;
  }

  /** Asks libvirt for their names, and tells of them. */
  async lookUp(deadlineMs: number): Promise<void> {
    const { session } = this.#host;
    const lookUps = [...this.#problems].map(async ([uuid, { message }]) => {
      const ref = await session.client.findByUuid(uuid, deadlineMs);
      if (ref !== null) this.#seen.set(uuid, ref);
      this.#host.tell(ref?.name ?? uuid, null, 'record-unreadable', { error: message });
    });
    await Promise.all(lookUps);
  }

  /** Answers whether the event is that of one of them. */
  onLifecycle(ref: DomainRef, event: number): boolean {
    if (!this.#problems.has(ref.uuid)) return false;
    const ended = event === lifecycleEvent.stopped || event === lifecycleEvent.crashed;
    this.#seen.set(ref.uuid, ended ? { ...ref, id: -1 } : ref);
    return true;
  }

  statuses(): DomainStatus[] {
    return [...this.#problems].map(([uuid, problem]) => ({
      domain: this.#seen.get(uuid)?.name ?? uuid,
      uuid,
      running: (this.#seen.get(uuid)?.id ?? -1) >= 0,
      state: 'broken',
      policy: 'available',
      engine: 'quorum',
      guarantee: 'none',
      disks: [],
      problem: errorAndHint(problem),
    }));
  }
}
