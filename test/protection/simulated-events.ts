import assert from 'node:assert/strict';
import type { EventName } from '../../src/protection/model.ts';
import type { DiskRecord, DomainRecord } from '../../src/protection/record.ts';

/** Disks whose copies are recorded to have become current, which the agent has not told yet. */
export class Untold {
  readonly #disks = new Set<string>();

  recorded(before: DomainRecord, after: DomainRecord): void {
    for (const disk of after.disks) {
      const known = before.disks.find(({ dev }) => dev === disk.dev);
      if (known !== undefined && !areCurrent(known) && areCurrent(disk)) this.#disks.add(disk.dev);
    }
  }

  told(event: EventName, disk: string | null): void {
    if (event === 'armed' && disk !== null)
      assert.ok(this.#disks.delete(disk), `${disk} is told to be armed though nothing has changed`);
  }

  /** An agent that dies may have been about to tell. */
  forget(): void {
    this.#disks.clear();
  }

  assertNone(): void {
    assert.deepEqual([...this.#disks], [], 'disks were armed, and nobody was told');
  }
}

export function areCurrent({ primary, mirror }: DiskRecord): boolean {
  return primary.current && mirror.current;
}
