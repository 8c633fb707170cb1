import { withDiskImage } from '../../domain/edit.ts';
import type { Image } from '../../domain/image.ts';
import { CdpError, RefusedError } from '../../errors.ts';
import { imageName, sameStorage } from '../../storage/image.ts';
import { probeImage } from '../../storage/tools.ts';
import type { Host } from '../host.ts';
import type { Side } from '../model.ts';
import type { Protector } from '../protector.ts';
import type { DiskRecord } from '../record.ts';
import { stale } from '../planner/surgery.ts';

/** Starts a domain from the current copy of each disk; where the primary is gone and the mirror is current, from the mirror. */
export async function start(
  protector: Protector,
  { acceptDataLoss }: { acceptDataLoss?: boolean | undefined },
  host: Host,
): Promise<void> {
  const { record } = protector;
  if (protector.live !== null) {
    throw new CdpError({
      code: 'domain-running',
      message: `${record.name} runs already`,
      hint: `virt-cdp status ${record.name}`,
    });
  }
  const deadlineMs = host.config().mirror.timeoutMs;
  const chosen = new Map<string, Side>();
  for (const disk of record.disks) {
    const answers = await askBoth(disk, deadlineMs);
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
  await protector.change((latest) =>
    Promise.resolve({
      record: {
        ...latest,
        disks: latest.disks.map((disk) =>
          onlyCurrent(protector.memoryOf(disk.dev).reached(disk), chosen.get(disk.dev) ?? 'primary'),
        ),
      },
      result: undefined,
    }),
  );
  const before = await client.domainXml(ref, { inactive: true, secure: true });
  const xml = record.disks.reduce((text, disk) => {
    const { image } = disk[chosen.get(disk.dev) ?? 'primary'];
    const defined = definedOf(disk.dev);
    return defined !== null && sameStorage(defined, image) ? text : withDiskImage(text, disk.dev, image);
  }, before);
  if (xml !== before) await client.defineXml(xml);
  await client.create(ref);
}

/**
 * A definition that names neither copy may name an overlay, made by a snapshot that nobody saw: then the primary alone lacks what
 * was written since. Or it may name a primary of former days. Nobody but the administrator knows.
 */
function refuseOtherImage(
  domain: string,
  { dev, primary, mirror }: DiskRecord,
  side: Side,
  defined: Image | null,
): void {
  if (side !== 'primary' || defined === null) return;
  if ([primary, mirror].some(({ image }) => sameStorage(defined, image))) return;
  throw new RefusedError({
    code: 'definition-names-other',
    message: `the definition of ${domain}'s disk ${dev} names '${imageName(defined)}', which is not known as a copy; the last known primary is '${imageName(primary.image)}'`,
    hint: `if it is a snapshot's overlay over the primary: virsh start ${domain}. If not: --accept-data-loss starts from the primary`,
  });
}

async function askBoth({ primary, mirror }: DiskRecord, deadlineMs: number): Promise<Record<Side, boolean>> {
  const [first, second] = await Promise.all([
    probeImage(primary.image, { deadlineMs }),
    probeImage(mirror.image, { deadlineMs }),
  ]);
  return { primary: first.ok, mirror: second.ok };
}

/** The copy to boot from. @throws RefusedError when only a stale one answers and nobody accepted the loss. */
function bootSide(disk: DiskRecord, answers: Record<Side, boolean>, acceptDataLoss: boolean): Side {
  const sides: Side[] = ['primary', 'mirror'];
  const current = sides.find((side) => disk[side].current && answers[side]);
  if (current !== undefined) return current;
  const staleSide = sides.find((side) => !disk[side].current && answers[side]);
  const lost = sides.filter((side) => disk[side].current).map((side) => imageName(disk[side].image));
  if (staleSide === undefined) {
    throw new CdpError({
      code: 'no-copy',
      message: `no copy of disk ${disk.dev} answers`,
      hint: `bring ${lost.join(' or ')} back`,
    });
  }
  const { image, consistentAsOf } = disk[staleSide];
  const asOf =
    consistentAsOf === null
      ? 'it is a mixture of times and may not even boot'
      : `everything written after ${consistentAsOf} is lost`;
  if (acceptDataLoss) return staleSide;
  throw new RefusedError({
    code: 'stale-copy',
    message: `disk ${disk.dev}: only the stale copy '${imageName(image)}' answers; ${asOf}`,
    hint: `bring ${lost.join(' or ')} back, or add --accept-data-loss`,
  });
}

function onlyCurrent(disk: DiskRecord, side: Side): DiskRecord {
  const other = side === 'primary' ? 'mirror' : 'primary';
  if (disk[side].current && side === 'primary') return disk;
  const now = new Date().toISOString();
  return {
    ...disk,
    [side]: { ...disk[side], current: true, consistentAsOf: null },
    [other]: stale(disk[other], disk.state === 'stopped' ? disk.since : now),
    track: null,
    exposedSince: disk.exposedSince ?? now,
  };
}
