import type { Image } from '../domain/image.ts';
import { errorText } from '../errors.ts';
import type { Doubt } from '../storage/durability.ts';
import { imageName } from '../storage/image.ts';
import { weaknesses } from '../storage/weaknesses.ts';
import type { LookOptions } from '../storage/tools.ts';
import type { Log } from '../log.ts';
import type { Side } from './model.ts';
import type { Protector } from './protector.ts';
import type { DiskRecord } from './record.ts';

interface Look {
  /** The copies, and the QEMU that has them. */
  of: string;
  /** The disk's, at that time. */
  state: DiskRecord['state'];
  told: Set<string>;
  /** Not all that can be asked was answered, or not yet. */
  incomplete: boolean;
}

/**
 * Says in a disk's status, and once as an event, what is weak about the storage of its copies. What could not be found out is said by `protect`
 * and `doctor` alone, and looked at again when the disk's state is another: the storage may have been away.
 */
export class StorageRemarks {
  readonly #options: () => LookOptions;
  readonly #log: Log;
  /** The last look at each disk. */
  readonly #looks = new WeakMap<Protector, Map<string, Look>>();

  constructor(options: () => LookOptions, log: Log) {
    this.#options = options;
    this.#log = log;
  }

  /** Looks at what changed since the last time, in the background. */
  consider(protector: Protector): void {
    const looks = this.#looks.get(protector) ?? new Map<string, Look>();
    this.#looks.set(protector, looks);
    for (const disk of protector.record.disks) {
      const of = [protector.live?.instance, imageName(disk.primary.image), imageName(disk.mirror.image)].join('\n');
      const { state } = disk;
      const last = looks.get(disk.dev);
      const same = last?.of === of;
      if (same && !(last.incomplete && last.state !== state)) continue;
      const look: Look = { of, state, told: same ? last.told : new Set(), incomplete: true };
      looks.set(disk.dev, look);
      this.#look(protector, disk, look).catch((error: unknown) =>
        this.#log.warn('storage could not be judged', { domain: protector.record.name, error: errorText(error) }),
      );
    }
  }

  async #look(protector: Protector, disk: DiskRecord, look: Look): Promise<void> {
    const doubts = await storageDoubts(disk, this.#options());
    if (this.#looks.get(protector)?.get(disk.dev) !== look) return;
    look.incomplete = doubts.some(({ known }) => !known);
    const remarks = doubts.flatMap(({ what, known }) => (known ? [what] : []));
    protector.memoryOf(disk.dev).storageRemark = remarks.length === 0 ? undefined : remarks.join('; ');
    for (const what of remarks) {
      if (!look.told.has(what)) protector.note('at-risk', disk.dev, { what });
      look.told.add(what);
    }
  }
}

/** A sentence for each weakness of a disk's two copies. */
export async function storageDoubts(
  { primary, mirror }: Record<Side, { image: Image }>,
  options: LookOptions,
): Promise<Doubt[]> {
  return [
    ...(await weaknesses(primary.image, 'libvirt', options)),
    ...(await weaknesses(mirror.image, 'agent', options)),
  ];
}
