import { RefusedError, UsageError } from '../../errors.ts';
import { imageName } from '../../storage/image.ts';
import type { Protector } from '../protector.ts';

/** Ends the protection of one disk, or of all. The mirror's data are left alone. */
export async function unprotect(
  protector: Protector,
  { disk, keep }: { disk?: string | undefined; keep?: 'mirror' | undefined },
): Promise<void> {
  await protector.amend((record) => {
    const chosen = record.disks.filter(({ dev }) => disk === undefined || dev === disk);
    if (chosen.length === 0) {
      throw new UsageError({
        code: 'disk-not-protected',
        message: `${record.name}'s disk '${disk ?? ''}' is not protected`,
        hint: `virt-cdp status ${record.name}`,
      });
    }
    const movedOff = chosen.find(({ primary }) => !primary.current);
    if (movedOff !== undefined && keep !== 'mirror') {
      throw new RefusedError({
        code: 'failed-over',
        message: `${record.name}'s disk ${movedOff.dev} runs on its mirror; its primary is stale`,
        hint: `virt-cdp rebuild ${record.name} first, or add --keep mirror to make ${imageName(movedOff.mirror.image)} the ordinary disk`,
      });
    }
    if (movedOff === undefined && keep === 'mirror') {
      throw new UsageError({
        code: 'not-failed-over',
        message: `${record.name} runs on its primary; --keep mirror is for a domain that is failed over`,
        hint: `virt-cdp failover ${record.name} first`,
      });
    }
    const disks = record.disks.map((one) =>
      chosen.includes(one) ? { ...one, intent: { kind: 'remove' as const } } : one,
    );
    return { ...record, disks };
  });
  if (protector.live === null) await protector.forgetRemoved();
}
