import { imageFromDiskXml } from '../../domain/disk-image.ts';
import { policies, type DeclaredDisk, type Policy } from '../../domain/declaration.ts';
import { hasStopPolicy, type Domain, type DomainDisk } from '../../domain/domain.ts';
import { withErrorPolicy } from '../../domain/edit.ts';
import type { Image } from '../../domain/image.ts';
import { CdpError, UsageError } from '../../errors.ts';
import type { DomainRef } from '../../libvirt/types.ts';
import { imageName, parseImageUri } from '../../storage/image.ts';
import { declaredAgain } from '../definitions/compare.ts';
import type { Host } from '../host.ts';
import type { Protector } from '../protector.ts';
import { newDiskRecord } from '../record.ts';
import { takeMirror } from './mirror-checks.ts';
import { unprotect } from './unprotect.ts';

export interface ProtectRequest {
  disk: string;
  mirror?: string | undefined;
  mirrorXml?: string | undefined;
  policy?: Policy | undefined;
  create?: boolean | undefined;
  overwriteMirror?: boolean | undefined;
  rebuildTo?: string | undefined;
}

/** Declares a disk protected, and if the domain runs begins at once. Everything that can be wrong is found before anything is changed. */
export async function protect(
  host: Host,
  ref: DomainRef,
  request: ProtectRequest,
): Promise<{ protector: Protector; warnings: string[] }> {
  const { domain, persistent } = await host.definition(ref);
  const disk = findDisk(domain, request.disk);
  const primary = protectableImage(disk);
  const known = host.protectorOf(ref.uuid);
  const declaredBefore = domain.declaration?.disks.some(({ dev }) => dev === disk.dev) === true;
  if (known?.record.disks.some(({ dev }) => dev === disk.dev) === true && !declaredBefore) {
    return { protector: known, warnings: await declareAgain(host, ref, domain, disk, known, persistent) };
  }
  if (known !== null && declaredBefore) {
    throw new UsageError({
      code: 'already-protected',
      message: `${ref.name}'s disk ${disk.dev} is already protected`,
      hint: `virt-cdp unprotect ${ref.name} --disk ${disk.dev} first, to change its mirror`,
    });
  }
  const policy = request.policy ?? domain.declaration?.policy ?? policies[0];
  const rebuildTo = request.rebuildTo ?? null;
  const undeclared: Omit<DeclaredDisk, 'mirror'> = {
    dev: disk.dev,
    rebuild: rebuildTo === null ? null : { to: rebuildTo, format: primary.format, auto: false },
    previousErrorPolicy: { errorPolicy: disk.errorPolicy, readErrorPolicy: disk.readErrorPolicy },
  };
  const terms = { create: request.create === true, mayOverwrite: request.overwriteMirror === true, heirOf: null };
  const target = { uuid: ref.uuid, dev: disk.dev, primary };
  const { protector, declared } = await takeMirror(host, target, requestedMirror(request), terms, async (mirror) => {
    const whole = { ...undeclared, mirror };
    return {
      declared: whole,
      protector: await host.declare(ref, policy, [newDiskRecord(whole, primary, ref.id >= 0)]),
    };
  });
  try {
    await writeDeclared(host, ref, domain, policy, declared);
    await host.begin(ref);
  } catch (error) {
    await unprotect(protector, { disk: disk.dev });
    throw error;
  }
  return { protector, warnings: await startWarnings(protector, disk.dev, persistent) };
}

/** The record knows the disk, but the definition does not: an agent died in between, or somebody redefined the domain. */
async function declareAgain(
  host: Host,
  ref: DomainRef,
  domain: Domain,
  disk: DomainDisk,
  known: Protector,
  persistent: boolean,
): Promise<string[]> {
  const { dev } = disk;
  const { name, policy, disks } = known.record;
  const record = disks.find((other) => other.dev === dev);
  if (record === undefined) return [];
  await writeDeclared(host, ref, domain, policy, declaredAgain(record, disk));
  return [
    `${name}'s ${dev} was known already, with the mirror '${imageName(record.mirror.image)}', but not declared; now it is again`,
    ...(await startWarnings(known, dev, persistent)),
  ];
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
    withErrorPolicy(xml, declared.dev, { errorPolicy: 'stop', readErrorPolicy: 'stop' }),
  );
}

/** What begins only with the domain's next start is said, not hidden. */
async function startWarnings({ live, record }: Protector, dev: string, persistent: boolean): Promise<string[]> {
  if (live === null) return [];
  const running = (await live.disks()).find((disk) => disk.dev === dev);
  if (running === undefined || hasStopPolicy(running)) return [];
  return [
    `${record.name} runs without error_policy='stop' on ${dev}, which can't be changed while it runs: ` +
      (persistent
        ? 'its definition has it now, and protection begins with its next start (virsh shutdown, virsh start)'
        : 'it is transient, so its next definition must have it'),
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
