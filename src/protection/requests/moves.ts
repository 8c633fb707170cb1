import { imageFromDiskXml } from '../../domain/disk-image.ts';
import { wouldBeInClear } from '../../domain/encryption.ts';
import type { Image, ImageFormat } from '../../domain/image.ts';
import { CdpError, RefusedError, UsageError } from '../../errors.ts';
import { requireSpace } from '../../storage/free-space.ts';
import { imageName, parseImageUri, sameStorage } from '../../storage/image.ts';
import { createImage, measureImage, probeImage, resolveImage } from '../../storage/tools.ts';
import type { Host } from '../host.ts';
import { refuseImageInUse } from '../image-users.ts';
import type { Protector } from '../protector.ts';
import type { DiskRecord, DomainRecord, Intent } from '../record.ts';

/** What an administrator may ask of a protected domain. Each move is an intent in the record, which the loop then carries out. */

const storageDeadlineMs = 30_000;

export async function hold(protector: Protector): Promise<void> {
  await intend(protector, undefined, (disk, record) => {
    requireOnPrimary(record, disk);
    protector.note('requested', disk.dev, { move: 'hold' });
    return { kind: 'hold' };
  });
}

export async function release(protector: Protector): Promise<void> {
  protector.note('released', null, {});
  await intend(protector, undefined, (disk) => (disk.intent.kind === 'hold' ? { kind: 'protect' } : disk.intent));
}

export async function resync(
  protector: Protector,
  { disk, full }: { disk?: string | undefined; full?: boolean | undefined },
): Promise<void> {
  await intend(protector, disk, (one, record) => {
    requireOnPrimary(record, one);
    protector.note('requested', one.dev, { move: 'resync', full: full === true });
    return full === true ? { kind: 'resync' } : one.intent;
  });
}

export async function failover(
  protector: Protector,
  { disk, acceptDataLoss }: { disk?: string | undefined; acceptDataLoss?: boolean | undefined },
): Promise<void> {
  await intend(protector, disk, (one, record) => {
    if (!one.primary.current) {
      throw new UsageError({
        code: 'failed-over',
        message: `${record.name}'s disk ${one.dev} is on its mirror already`,
        hint: `virt-cdp rebuild ${record.name}`,
      });
    }
    if (!one.mirror.current) throw staleMirror(record, one, acceptDataLoss === true);
    if (protector.live === null) {
      throw new CdpError({
        code: 'domain-not-running',
        message: `${record.name} does not run`,
        hint: `virt-cdp start ${record.name} starts it, from the mirror if the primary is gone`,
      });
    }
    protector.note('requested', one.dev, { move: 'failover' });
    return { kind: 'failover' };
  });
}

/** A running guest can't be put onto old data under its feet: that takes a start. */
function staleMirror(record: DomainRecord, { dev, mirror }: DiskRecord, accepted: boolean): CdpError {
  const asOf = mirror.consistentAsOf === null ? 'is a mixture of times' : `is whole as of ${mirror.consistentAsOf}`;
  const message = `the mirror of ${record.name}'s disk ${dev} is stale: it ${asOf}; later writes would be lost`;
  return accepted
    ? new CdpError({
        code: 'mirror-stale',
        message: `${message}; a running guest can't be moved onto it`,
        hint: `virsh destroy ${record.name}, then virt-cdp start ${record.name} --accept-data-loss`,
      })
    : new RefusedError({
        code: 'mirror-stale',
        message,
        hint: 'if the primary is lost for good, add --accept-data-loss',
      });
}

export interface RebuildRequest {
  disk?: string | undefined;
  to?: string | undefined;
  toXml?: string | undefined;
  format?: ImageFormat | undefined;
}

export async function rebuild(protector: Protector, request: RebuildRequest, host: Host): Promise<void> {
  const { record } = protector;
  const disk = chosenDisk(record, request.disk, (one) => !one.primary.current);
  if (disk === undefined) {
    throw new UsageError({
      code: 'not-failed-over',
      message: `${record.name} is not failed over, so there is nothing to rebuild`,
      hint: `virt-cdp status ${record.name}`,
    });
  }
  requireStopPolicy(protector, disk);
  if (disk.intent.kind === 'rebuild') {
    throw new CdpError({
      code: 'rebuild-running',
      message: `${record.name}'s disk ${disk.dev} is being rebuilt already, onto '${imageName(disk.intent.to)}'`,
      hint: `virt-cdp status ${record.name}`,
    });
  }
  if (protector.live === null) {
    throw new CdpError({
      code: 'domain-not-running',
      message: `${record.name} does not run; a rebuild copies under the running guest`,
      hint: `virt-cdp start ${record.name} first`,
    });
  }
  const intent =
    request.to === 'original' ? await toOriginal(host, protector, disk) : await toNew(host, protector, disk, request);
  protector.note('requested', disk.dev, { move: 'rebuild', to: imageName(intent.to) });
  await intend(protector, disk.dev, () => intent);
}

type RebuildIntent = Extract<Intent, { kind: 'rebuild' }>;

async function toOriginal(host: Host, protector: Protector, { dev, primary }: DiskRecord): Promise<RebuildIntent> {
  const options = { deadlineMs: storageDeadlineMs, opener: host.opener };
  const answer = await probeImage(primary.image, options);
  if (!answer.ok) {
    throw new CdpError({
      code: 'original-unreachable',
      message: `the original primary '${imageName(primary.image)}' does not answer: ${answer.reason}`,
      hint: 'bring it back, or rebuild onto a new disk with --to',
    });
  }
  const seen = protector.observation?.disks.find(({ record }) => record.dev === dev);
  const openedByUs = seen?.graph?.layout === 'mirror';
  const { backing, dataFile, virtualSizeBytes } = await measureImage(primary.image, options);
  const sizeBytes = seen?.graph?.sizeBytes ?? 0;
  if (virtualSizeBytes < sizeBytes) {
    throw new CdpError({
      code: 'original-too-small',
      message: `the original primary '${imageName(primary.image)}' has ${virtualSizeBytes} bytes, the disk ${sizeBytes}: it was started from a larger mirror`,
      hint: `grow it to ${sizeBytes} bytes, or rebuild onto a new disk with --to`,
    });
  }
  // libvirt's live XML still tells the chain that it had opened.
  const chain = (await protector.live?.disks())?.find((disk) => disk.dev === dev)?.backing ?? [];
  if (dataFile || (backing && openedByUs && chain.length === 0)) {
    throw new CdpError({
      code: 'original-incomplete',
      message: `the original primary '${imageName(primary.image)}' has a ${dataFile ? 'data' : 'backing'} file that libvirt does not name, without which it can't be opened again`,
      hint: 'rebuild onto a new disk with --to; it will stand alone',
    });
  }
  if (openedByUs && seen.graph?.primary !== null) {
    throw new CdpError({
      code: 'original-still-open',
      message: `QEMU still holds the failed nodes of '${imageName(primary.image)}'`,
      hint: 'they are being closed; try again in a minute',
    });
  }
  return { kind: 'rebuild', to: primary.image, original: openedByUs };
}

async function toNew(
  host: Host,
  protector: Protector,
  disk: DiskRecord,
  request: RebuildRequest,
): Promise<RebuildIntent> {
  const options = { deadlineMs: storageDeadlineMs, opener: host.opener };
  const to = await resolveImage(requestedTarget(protector.record, disk, request), options);
  if (sameStorage(to, disk.primary.image)) {
    throw new UsageError({
      code: 'target-is-original',
      message: `'${imageName(to)}' is the original primary`,
      hint: 'use --to original',
    });
  }
  await refuseImageInUse(host, { uuid: protector.record.uuid, dev: disk.dev }, to, disk.mirror.image);
  const seen = protector.observation?.disks.find(({ record }) => record.dev === disk.dev);
  const sizeBytes = seen?.graph?.sizeBytes ?? (await measureImage(disk.mirror.image, options)).virtualSizeBytes;
  if (to.source.kind === 'file') {
    await requireSpace(to, sizeBytes, options);
    await createImage(to, sizeBytes, options);
    return { kind: 'rebuild', to, original: false };
  }
  const measured = await measureImage(to, options);
  if (measured.virtualSizeBytes !== sizeBytes) {
    throw new CdpError({
      code: 'target-size-differs',
      message: `'${imageName(to)}' has ${measured.virtualSizeBytes} bytes, the disk ${sizeBytes}: they must be equal`,
    });
  }
  if (measured.holdsData) {
    throw new RefusedError({
      code: 'target-holds-data',
      message: `'${imageName(to)}' holds data`,
      hint: 'make sure that nobody needs it, and wipe it',
    });
  }
  return { kind: 'rebuild', to, original: false };
}

/** An encrypted disk stays encrypted: with its own secret, unless the XML names another. */
function requestedTarget(record: DomainRecord, disk: DiskRecord, { to, toXml, format }: RebuildRequest): Image {
  const { encryption } = disk.primary.image;
  if (toXml !== undefined && to === undefined) {
    const image = imageFromDiskXml(toXml);
    if (!wouldBeInClear(disk.primary.image, image)) return image;
    throw new RefusedError({
      code: 'target-not-encrypted',
      message: `${record.name}'s disk ${disk.dev} is encrypted, and '${imageName(image)}' would hold it in clear`,
      hint: "give it an <encryption format='luks'> with a <secret>, or name it with --to: then it has the disk's own secret",
    });
  }
  const template = to ?? disk.rebuildTo;
  if (template === null || toXml !== undefined) {
    throw new UsageError({
      code: 'target-missing',
      message: `where should the new primary of ${record.name}'s disk ${disk.dev} be?`,
      hint: `virt-cdp rebuild ${record.name} --to PATH, or --to original if the old primary came back`,
    });
  }
  const names: Record<string, string> = { domain: record.name, dev: disk.dev, n: String(disk.rebuilds + 1) };
  const uri = template.replace(/\{(domain|dev|n)\}/g, (_, name: string) => names[name] ?? '');
  return {
    ...parseImageUri(uri, format === undefined ? {} : { format }),
    ...(encryption !== undefined && { encryption }),
  };
}

/** The way back needs a moment in which every I/O fails, and the guest must not be told. */
function requireStopPolicy({ observation, record }: Protector, { dev }: DiskRecord): void {
  const seen = observation?.disks.find((disk) => disk.record.dev === dev);
  if (seen === undefined || seen.withoutStopPolicy === null) return;
  throw new CdpError({
    code: 'no-stop-policy',
    message: `${record.name} runs without error_policy='stop' on ${dev}, and can't be moved to a new primary under the running guest`,
    hint: `virsh shutdown ${record.name}, then virsh start ${record.name}: it goes on from its mirror, with the policy; then rebuild`,
  });
}

/** Refuses a disk that runs on its mirror: only its current copy can be what others are brought up to date from. */
function requireOnPrimary(record: DomainRecord, { dev, primary }: DiskRecord): void {
  if (primary.current) return;
  throw new UsageError({
    code: 'failed-over',
    message: `${record.name}'s disk ${dev} is failed over: its mirror is the only current copy`,
    hint: `virt-cdp rebuild ${record.name}`,
  });
}

function chosenDisk(
  record: DomainRecord,
  dev: string | undefined,
  fits: (disk: DiskRecord) => boolean,
): DiskRecord | undefined {
  return record.disks.find((disk) => (dev === undefined || disk.dev === dev) && fits(disk));
}

/** Changes the intent of one disk, or of all, at once. */
async function intend(
  protector: Protector,
  dev: string | undefined,
  intentOf: (disk: DiskRecord, record: DomainRecord) => Intent,
): Promise<void> {
  await protector.amend((record) => {
    if (dev !== undefined && !record.disks.some((disk) => disk.dev === dev)) {
      throw new UsageError({
        code: 'disk-not-protected',
        message: `${record.name}'s disk '${dev}' is not protected`,
        hint: `virt-cdp status ${record.name}`,
      });
    }
    const disks = record.disks.map((disk) =>
      dev === undefined || disk.dev === dev ? withIntent(disk, intentOf(disk, record)) : disk,
    );
    return { ...record, disks };
  });
}

function withIntent(disk: DiskRecord, intent: Intent): DiskRecord {
  return { ...disk, intent, rebuilds: intent.kind === 'rebuild' ? disk.rebuilds + 1 : disk.rebuilds };
}
