import { withDiskImage } from '../../domain/edit.ts';
import type { Image } from '../../domain/image.ts';
import { CdpError } from '../../errors.ts';
import { sameStorage } from '../../storage/image.ts';
import { probeImage, type LookOptions } from '../../storage/tools.ts';
import type { Host } from '../host.ts';
import type { Side } from '../model.ts';
import type { Protector } from '../protector.ts';
import type { DiskRecord } from '../record.ts';
import { bootSide, onlyCurrent, refuseOtherImage } from '../starts/boot-side.ts';

export interface StartOptions {
  acceptDataLoss?: boolean | undefined;
  /** A copy that may answer, and keeps a guest waiting all the same. */
  hung?: { dev: string; side: Side };
}

/** Starts a domain from the current copy of each disk; where the primary is gone and the mirror is current, from the mirror. */
export async function start(protector: Protector, { acceptDataLoss, hung }: StartOptions, host: Host): Promise<void> {
  const { record } = protector;
  if (protector.live !== null) {
    throw new CdpError({
      code: 'domain-running',
      message: `${record.name} runs already`,
      hint: `virt-cdp status ${record.name}`,
    });
  }
  const options = { deadlineMs: host.config().mirror.timeoutMs, opener: host.opener };
  const chosen = new Map<string, Side>();
  for (const disk of record.disks) {
    const answers = await askBoth(disk, options);
    if (hung?.dev === disk.dev) answers[hung.side] = false;
    for (const side of ['primary', 'mirror'] as const) protector.memoryOf(disk.dev).reachable[side] = answers[side];
    chosen.set(disk.dev, bootSide(disk, answers, acceptDataLoss === true));
  }
  const { client } = host.session;
  const { ref, domain } = await host.definition(record);
  const definedOf = (dev: string): Image | null => domain.disks.find((disk) => disk.dev === dev)?.image ?? null;
  if (acceptDataLoss !== true) {
    for (const disk of record.disks)
      refuseOtherImage(record.name, disk, chosen.get(disk.dev) ?? 'primary', definedOf(disk.dev));
  }
  await protector.amend((latest) => ({
    ...latest,
    disks: latest.disks.map((disk) =>
      onlyCurrent(protector.memoryOf(disk.dev).reached(disk), chosen.get(disk.dev) ?? 'primary'),
    ),
  }));
  const before = await client.domainXml(ref, { inactive: true, secure: true });
  const xml = record.disks.reduce((text, disk) => {
    const { image } = disk[chosen.get(disk.dev) ?? 'primary'];
    const defined = definedOf(disk.dev);
    return defined !== null && sameStorage(defined, image) ? text : withDiskImage(text, disk.dev, image);
  }, before);
  if (xml !== before) await client.defineXml(xml);
  await client.create(ref);
}

async function askBoth({ primary, mirror }: DiskRecord, options: LookOptions): Promise<Record<Side, boolean>> {
  const [first, second] = await Promise.all([probeImage(primary.image, options), probeImage(mirror.image, options)]);
  return { primary: first.ok, mirror: second.ok };
}
