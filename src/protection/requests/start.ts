import type { Domain } from '../../domain/domain.ts';
import { withDiskImage } from '../../domain/edit.ts';
import type { Image } from '../../domain/image.ts';
import { CdpError } from '../../errors.ts';
import { sameStorage } from '../../storage/image.ts';
import { probeImage, type LookOptions } from '../../storage/tools.ts';
import type { Host } from '../host.ts';
import type { Side } from '../model.ts';
import type { Protector } from '../protector.ts';
import type { DiskRecord, DomainRecord } from '../record.ts';
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
  const answers = await askCopies(record, hung, host);
  for (const [{ dev }, reachable] of answers) Object.assign(protector.memoryOf(dev).reachable, reachable);
  const chosen = await chooseSides(record, answers, acceptDataLoss === true, host);
  await protector.amend((latest) => ({
    ...latest,
    disks: latest.disks.map((disk) =>
      onlyCurrent(protector.memoryOf(disk.dev).reached(disk), chosen.get(disk.dev) ?? 'primary'),
    ),
  }));
  const { client } = host.session;
  const { ref, domain } = await host.definition(record);
  const before = await client.domainXml(ref, { inactive: true, secure: true });
  const xml = record.disks.reduce((text, disk) => {
    const { image } = disk[chosen.get(disk.dev) ?? 'primary'];
    const defined = definedImage(domain, disk.dev);
    return defined !== null && sameStorage(defined, image) ? text : withDiskImage(text, disk.dev, image);
  }, before);
  if (xml !== before) await client.defineXml(xml);
  await client.create(ref);
}

export type Answers = Map<DiskRecord, Record<Side, boolean>>;

/** Which copies answer. */
export async function askCopies({ disks }: DomainRecord, hung: StartOptions['hung'], host: Host): Promise<Answers> {
  const options = { deadlineMs: host.config().mirror.timeoutMs, opener: host.opener };
  return new Map(
    await Promise.all(
      disks.map(async (disk) => {
        const answers = await askBoth(disk, options);
        if (hung?.dev === disk.dev) answers[hung.side] = false;
        return [disk, answers] as const;
      }),
    ),
  );
}

/** The copy to start each disk from. @throws CdpError, RefusedError if there is none for one of them */
export async function chooseSides(
  record: DomainRecord,
  answers: Answers,
  acceptDataLoss: boolean,
  host: Host,
): Promise<Map<string, Side>> {
  const chosen = [...answers].map(([disk, of]) => ({ disk, side: bootSide(disk, of, acceptDataLoss) }));
  if (!acceptDataLoss) {
    const { domain } = await host.definition(record);
    for (const { disk, side } of chosen) refuseOtherImage(record.name, disk, side, definedImage(domain, disk.dev));
  }
  return new Map(chosen.map(({ disk, side }) => [disk.dev, side]));
}

function definedImage({ disks }: Domain, dev: string): Image | null {
  return disks.find((disk) => disk.dev === dev)?.image ?? null;
}

async function askBoth({ primary, mirror }: DiskRecord, options: LookOptions): Promise<Record<Side, boolean>> {
  const [first, second] = await Promise.all([probeImage(primary.image, options), probeImage(mirror.image, options)]);
  return { primary: first.ok, mirror: second.ok };
}
