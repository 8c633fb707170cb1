import type { Image } from '../domain/image.ts';
import { errorText } from '../errors.ts';
import { imageName } from '../storage/image.ts';
import { weaknesses } from '../storage/weaknesses.ts';
import type { LookOptions } from '../storage/tools.ts';
import type { Log } from '../log.ts';
import type { Side } from './model.ts';
import type { Protector } from './protector.ts';
import type { DiskRecord } from './record.ts';

/** Says in a disk's status, and once as an event, what is weak about the storage of its copies. */
export class StorageRemarks {
  readonly #options: () => LookOptions;
  readonly #log: Log;
  /** For which copies in which QEMU each disk was looked at. */
  readonly #seen = new WeakMap<Protector, Map<string, string>>();

  constructor(options: () => LookOptions, log: Log) {
    this.#options = options;
    this.#log = log;
  }

  /** Looks at what changed since the last time, in the background. */
  consider(protector: Protector): void {
    const seen = this.#seen.get(protector) ?? new Map<string, string>();
    this.#seen.set(protector, seen);
    for (const disk of protector.record.disks) {
      const key = [protector.live?.instance, imageName(disk.primary.image), imageName(disk.mirror.image)].join('\n');
      if (seen.get(disk.dev) === key) continue;
      seen.set(disk.dev, key);
      this.#look(protector, disk).catch((error: unknown) =>
        this.#log.warn('storage could not be judged', { domain: protector.record.name, error: errorText(error) }),
      );
    }
  }

  async #look(protector: Protector, disk: DiskRecord): Promise<void> {
    const remarks = await storageRemarks(disk, this.#options());
    protector.memoryOf(disk.dev).storageRemark = remarks.length === 0 ? undefined : remarks.join('; ');
    for (const what of remarks) protector.note('at-risk', disk.dev, { what });
  }
}

/** A sentence for each weakness of a disk's two copies. */
export async function storageRemarks(
  { primary, mirror }: Record<Side, { image: Image }>,
  options: LookOptions,
): Promise<string[]> {
  return [
    ...(await weaknesses(primary.image, 'libvirt', options)),
    ...(await weaknesses(mirror.image, 'agent', options)),
  ];
}
