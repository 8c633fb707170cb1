import { imageFromDiskXml } from '../../domain/disk-image.ts';
import { policies, type DeclaredDisk, type Policy } from '../../domain/declaration.ts';
import { hasStopPolicy, type Domain, type DomainDisk } from '../../domain/domain.ts';
import { withStopPolicy } from '../../domain/edit.ts';
import type { Image } from '../../domain/image.ts';
import { CdpError, RefusedError, UsageError } from '../../errors.ts';
import type { DomainRef } from '../../libvirt/types.ts';
import { imageName, parseImageUri, sameStorage } from '../../storage/image.ts';
import { resolveImage } from '../../storage/tools.ts';
import { declaredAgain } from '../definitions/compare.ts';
import type { Host } from '../host.ts';
import type { Protector } from '../protector.ts';
import { LiveDomain } from '../live-domain.ts';
import { newDiskRecord, type DiskRecord } from '../record.ts';
import { storageDoubts } from '../storage-remarks.ts';
import { strictNeedsQuorum, wayToStopPolicy } from '../stop-policy.ts';
import { takeMirror } from './mirror-checks.ts';
import { announcePause, saveAndRestore } from './save-restore.ts';
import { unprotect } from './unprotect.ts';

export interface ProtectRequest {
  disk: string;
  mirror?: string | undefined;
  mirrorXml?: string | undefined;
  policy?: Policy | undefined;
  create?: boolean | undefined;
  overwriteMirror?: boolean | undefined;
  unencryptedMirror?: boolean | undefined;
  rebuildTo?: string | undefined;
  stopPolicyBy?: 'save-restore' | undefined;
  pauseAgreed?: boolean | undefined;
}

export interface Protected {
  protector: Protector;
  warnings: string[];
  /** For how long the guest stood still to get the stop policy; null if it did not. */
  pausedMs: number | null;
}

/**
 * Declares a disk protected, and if the domain runs begins at once. Everything that can be wrong is found before anything is changed.
 * @throws RefusedError `pause-not-agreed`, whose message says what the guest is in for.
 */
export async function protect(host: Host, ref: DomainRef, request: ProtectRequest): Promise<Protected> {
  const { domain } = await host.definition(ref);
  const disk = findDisk(domain, request.disk);
  const record = host.protectorOf(ref.uuid)?.record.disks.find(({ dev }) => dev === disk.dev);
  const { protector, warnings, pauses } =
    record === undefined
      ? await declareNew(host, ref, domain, disk, request)
      : await declareKnown(host, ref, domain, disk, record, request);
  const pausedMs = pauses ? await saveAndRestore(host, protector, ref) : null;
  return { protector, warnings: [...warnings, ...(await startWarnings(protector, disk.dev))], pausedMs };
}

/** @throws CdpError `policy-needs-quorum`, as far as that is known: a domain that does not run has no QEMU yet. */
async function requireQuorum(host: Host, ref: DomainRef): Promise<void> {
  const running = ref.id >= 0 ? new LiveDomain(host.session, ref, host.relays, () => undefined) : null;
  if (host.config().engine !== 'mirror' && (running === null || (await running.hasQuorum()))) return;
  throw new CdpError({
    code: 'policy-needs-quorum',
    message: `${ref.name} can't have the policy strict: ${strictNeedsQuorum}`,
    hint:
      host.config().engine === 'mirror'
        ? 'the configuration says engine = "mirror"; --policy available'
        : '--policy available',
  });
}

interface Declared {
  protector: Protector;
  warnings: string[];
  /** The guest is to be saved and restored now. */
  pauses: boolean;
}

async function declareNew(
  host: Host,
  ref: DomainRef,
  domain: Domain,
  disk: DomainDisk,
  request: ProtectRequest,
): Promise<Declared> {
  const primary = protectableImage(disk);
  const pauses = await agreedPause(host, ref, request);
  const policy = request.policy ?? domain.declaration?.policy ?? policies[0];
  if (policy === 'strict') await requireQuorum(host, ref);
  const rebuildTo = request.rebuildTo ?? null;
  const undeclared: Omit<DeclaredDisk, 'mirror'> = {
    dev: disk.dev,
    ...(request.unencryptedMirror === true && { unencryptedMirror: true }),
    rebuild: rebuildTo === null ? null : { to: rebuildTo, format: primary.format, auto: false },
    previousErrorPolicy: { errorPolicy: disk.errorPolicy, readErrorPolicy: disk.readErrorPolicy },
  };
  const terms = {
    create: request.create === true,
    mayOverwrite: request.overwriteMirror === true,
    mayBeClear: request.unencryptedMirror === true,
    heirOf: null,
  };
  const target = { uuid: ref.uuid, dev: disk.dev, primary };
  const wanted = requestedMirror(request);
  const taken = await takeMirror(host, target, wanted, terms, async (mirror, warnings) => {
    const whole = { ...undeclared, mirror };
    return {
      declared: whole,
      protector: await host.declare(ref, policy, [newDiskRecord(whole, primary, ref.id >= 0)]),
      warnings,
    };
  });
  const { protector, declared, warnings } = taken;
  try {
    await writeDeclared(host, ref, domain, policy, declared);
    await host.begin(ref);
  } catch (error) {
    await unprotect(protector, { disk: disk.dev });
    throw error;
  }
  const options = { deadlineMs: host.config().mirror.timeoutMs, opener: host.opener };
  const doubts = await storageDoubts({ primary: { image: primary }, mirror: { image: declared.mirror } }, options);
  return { protector, warnings: [...warnings, ...doubts.map(({ what }) => what)], pauses };
}

/**
 * The disk is known. Either its definition does not declare it, because an agent died in between or somebody redefined the domain;
 * or it is to get the stop policy.
 */
async function declareKnown(
  host: Host,
  ref: DomainRef,
  domain: Domain,
  disk: DomainDisk,
  record: DiskRecord,
  request: ProtectRequest,
): Promise<Declared> {
  const { dev } = disk;
  const before = domain.declaration?.disks.find((other) => other.dev === dev);
  if (before !== undefined && !(await wantsOnlyStopPolicy(request, record.mirror.image))) {
    throw new UsageError({
      code: 'already-protected',
      message: `${ref.name}'s disk ${dev} is already protected`,
      hint: `virt-cdp unprotect ${ref.name} --disk ${dev} first, to change its mirror`,
    });
  }
  const pauses = await agreedPause(host, ref, request);
  const protector = host.protectorOf(ref.uuid);
  if (protector === null) throw new Error(`${ref.name} was unprotected meanwhile`);
  await writeDeclared(host, ref, domain, protector.record.policy, declaredAgain(record, disk, before));
  const mirrorName = imageName(record.mirror.image);
  const again = `${ref.name}'s ${dev} was known already, with the mirror '${mirrorName}', but not declared; now it is again`;
  return { protector, warnings: before === undefined ? [again] : [], pauses };
}

/** Following links may take longer than a probe. */
const resolveDeadlineMs = 30_000;

async function wantsOnlyStopPolicy(request: ProtectRequest, mirror: Image): Promise<boolean> {
  if (request.stopPolicyBy === undefined) return false;
  if (request.mirror === undefined && request.mirrorXml === undefined) return true;
  return sameStorage(await resolveImage(requestedMirror(request), { deadlineMs: resolveDeadlineMs }), mirror);
}

/** Whether the guest is to be paused, which somebody has agreed to knowing for how long. @throws RefusedError `pause-not-agreed` */
async function agreedPause(host: Host, ref: DomainRef, request: ProtectRequest): Promise<boolean> {
  const pause = request.stopPolicyBy === undefined ? null : await announcePause(host, ref, request.disk);
  if (pause === null || request.pauseAgreed === true) return pause !== null;
  throw new RefusedError({ code: 'pause-not-agreed', message: pause, hint: 'nothing was changed' });
}

async function writeDeclared(
  host: Host,
  ref: DomainRef,
  domain: Domain,
  policy: Policy,
  declared: DeclaredDisk,
): Promise<void> {
  const others = domain.declaration?.disks.filter(({ dev }) => dev !== declared.dev) ?? [];
  await host.definitions.write(ref, { policy, disks: [...others, declared] }, (xml) =>
    withStopPolicy(xml, [declared.dev]),
  );
}

/** What begins only with the domain's next start is said, not hidden. */
async function startWarnings(protector: Protector, dev: string): Promise<string[]> {
  const { live, record } = protector;
  if (live === null) return [];
  const running = (await live.disks()).find((disk) => disk.dev === dev);
  if (running === undefined || hasStopPolicy(running)) return [];
  protector.forgetXml();
  await protector.looked();
  const seen = protector.observation?.disks.find((disk) => disk.record.dev === dev);
  if (seen?.obstacle === null && seen.withoutStopPolicy !== null) return [seen.withoutStopPolicy];
  const defined = (await live.persistentDisks()).find((disk) => disk.dev === dev);
  return [
    `${record.name} runs without error_policy='stop' on ${dev}, and is not protected yet: QEMU takes it only when it opens ` +
      `the disk. ${wayToStopPolicy(record.name, dev, defined)}`,
  ];
}

function findDisk(domain: Domain, dev: string): DomainDisk {
  const disk = domain.disks.find((candidate) => candidate.dev === dev);
  if (disk !== undefined) return disk;
  throw new UsageError({
    code: 'disk-not-found',
    message: `${domain.name} has no disk '${dev}'`,
    hint: `its disks are ${domain.disks.map((candidate) => candidate.dev).join(', ') || 'none'}`,
  });
}

function protectableImage(disk: DomainDisk): Image {
  if (disk.unsupported !== null || disk.image === null) {
    throw new CdpError({
      code: 'disk-unsupported',
      message: `the disk ${disk.dev} can't be protected: ${disk.unsupported ?? 'it has no image'}`,
      hint: disk.unsupportedHint ?? 'give it one with virsh edit',
    });
  }
  return disk.image;
}

function requestedMirror({ mirror, mirrorXml }: ProtectRequest): Image {
  if (mirror !== undefined && mirrorXml === undefined) return parseImageUri(mirror);
  if (mirrorXml !== undefined && mirror === undefined) return imageFromDiskXml(mirrorXml);
  throw new UsageError({
    code: 'mirror-ambiguous',
    message: 'one mirror is needed: --mirror URI or --mirror-xml FILE, not both',
  });
}
