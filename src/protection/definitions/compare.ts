import type { Declaration, DeclaredDisk } from '../../domain/declaration.ts';
import { hasStopPolicy, type Domain, type DomainDisk } from '../../domain/domain.ts';
import { withDiskImage, withStopPolicy } from '../../domain/edit.ts';
import type { Image } from '../../domain/image.ts';
import { imageName, sameStorage } from '../../storage/image.ts';
import type { EventName } from '../model.ts';
import type { DiskRecord, DomainRecord } from '../record.ts';

/** What is told of a definition that changed. */
export interface Note {
  event: EventName;
  disk: string | null;
  detail: Record<string, unknown>;
}

/** What a domain's definition means for its record, and the record for the definition. */
export interface Comparison {
  /** The record, following what it may follow: names and policy. */
  record: DomainRecord;
  /** Declared disks that the record does not know. */
  added: DeclaredDisk[];
  /** What the definition says otherwise and is not followed, a sentence for a disk. */
  remarks: Map<string, string>;
  notes: Note[];
  /** What the definition must say again; null if nothing. */
  restoration: Restoration | null;
}

export interface Restoration {
  /** In words. */
  what: string[];
  /** Null leaves the declaration as it is. */
  declaration: Declaration | null;
  edit: (xml: string) => string;
}

/** How the domain runs while its definition is looked at. */
export interface Running {
  /** libvirt's live view of the disks. */
  disks: DomainDisk[];
  /** Its protection is under way: names of nodes are made of the disks' names. */
  attached: boolean;
}

/**
 * Compares. The record is the authority: who defines a domain without its declaration has more often forgotten it than meant
 * to end the protection, for which there is `virt-cdp unprotect`.
 */
export function compare(before: DomainRecord, domain: Domain, running: Running | null): Comparison {
  const renamed =
    running?.attached === true ? new Map<string, string>() : renamedDisks(before, (running ?? domain).disks);
  const { declaration } = domain;
  const record = follow(before, domain, renamed);
  const moved = (disk: DeclaredDisk): boolean =>
    renamed.has(disk.dev) && record.disks.some(({ mirror }) => sameStorage(mirror.image, disk.mirror));
  return {
    record,
    added: declaration?.disks.filter((disk) => !record.disks.some(({ dev }) => dev === disk.dev) && !moved(disk)) ?? [],
    remarks: new Map(
      record.disks.flatMap((disk) => {
        const remark = remarkOn(record, disk, domain, running);
        return remark === null ? [] : [[disk.dev, remark]];
      }),
    ),
    notes: [
      ...(record.name === before.name ? [] : [renamedNote(null, before.name, record.name)]),
      ...[...renamed].map(([from, to]) => renamedNote(to, from, to)),
      ...(record.policy === before.policy
        ? []
        : [{ event: 'policy-changed' as const, disk: null, detail: { from: before.policy, to: record.policy } }]),
    ],
    restoration: restorationOf(record, domain, renamed, moved, running === null),
  };
}

function renamedNote(disk: string | null, from: string, to: string): Note {
  return { event: 'renamed', disk, detail: { from, to } };
}

/** A disk is known by its copies: by former and new target, those that the definition calls otherwise. */
function renamedDisks(record: DomainRecord, defined: DomainDisk[]): Map<string, string> {
  const targets = record.disks.map((disk) => {
    const there = defined.filter(({ image }) => image !== null && isCopyOf(disk, image));
    return there.some(({ dev }) => dev === disk.dev) ? disk.dev : (there[0]?.dev ?? disk.dev);
  });
  if (new Set(targets).size < targets.length) return new Map();
  return new Map(record.disks.flatMap(({ dev }, n) => (targets[n] === dev ? [] : [[dev, targets[n] ?? dev]])));
}

function isCopyOf({ primary, mirror, contested }: DiskRecord, image: Image): boolean {
  return sameStorage(primary.image, image) || (contested === null && sameStorage(mirror.image, image));
}

function follow(record: DomainRecord, { name, declaration }: Domain, renamed: Map<string, string>): DomainRecord {
  const disks = record.disks.map((disk) => {
    const declared = declaration?.disks.find(({ dev }) => dev === disk.dev);
    const rebuild = declared?.rebuild;
    const followed = {
      ...disk,
      dev: renamed.get(disk.dev) ?? disk.dev,
      ...(rebuild != null && { rebuildTo: rebuild.to, rebuildAuto: rebuild.auto }),
      ...(declared !== undefined && { unencryptedMirror: declared.unencryptedMirror === true }),
    };
    return JSON.stringify(followed) === JSON.stringify(disk) ? disk : followed;
  });
  const policy = declaration?.policy ?? record.policy;
  if (name === record.name && policy === record.policy && disks.every((disk, n) => disk === record.disks[n]))
    return record;
  return { ...record, name, policy, disks };
}

function remarkOn(record: DomainRecord, disk: DiskRecord, domain: Domain, running: Running | null): string | null {
  const { dev, primary } = disk;
  if (disk.intent.kind === 'remove') return null;
  const defined = domain.disks.find((other) => other.dev === dev);
  if (defined === undefined) {
    const elsewhere = domain.disks.find(({ image }) => image !== null && isCopyOf(disk, image));
    return elsewhere === undefined
      ? `its definition has no disk ${dev} any more; virt-cdp unprotect ${record.name} --disk ${dev} ends its protection`
      : `its definition calls it ${elsewhere.dev}: so will virt-cdp, when the domain has stopped`;
  }
  if (domain.declarationProblem !== null)
    return `${domain.declarationProblem.message}; the disk is protected as before. virsh edit ${record.name} to correct it`;
  const declared = domain.declaration?.disks.find((other) => other.dev === dev);
  if (disk.contested === null && declared !== undefined && !sameStorage(declared.mirror, disk.mirror.image)) {
    const other = imageName(declared.mirror);
    return (
      `its definition declares another mirror, '${other}', which is not used. To change it: virt-cdp unprotect ${record.name} ` +
      `--disk ${dev}, then virt-cdp protect ${record.name} --disk ${dev} --mirror ${other}`
    );
  }
  const { image } = defined;
  const now = running?.disks.find((other) => other.dev === dev)?.image ?? null;
  const known = image === null || isOwn(disk, image) || (now !== null && sameStorage(now, image));
  return known
    ? null
    : `its next start is from '${imageName(image)}', which is none of its copies; the primary is '${imageName(primary.image)}'`;
}

function isOwn(disk: DiskRecord, image: Image): boolean {
  return isCopyOf(disk, image) || disk.retired.some((former) => sameStorage(former, image));
}

function restorationOf(
  record: DomainRecord,
  domain: Domain,
  renamed: Map<string, string>,
  moved: (disk: DeclaredDisk) => boolean,
  stopped: boolean,
): Restoration | null {
  const present = record.disks.flatMap((disk) => {
    const defined = domain.disks.find(({ dev }) => dev === disk.dev);
    return defined === undefined || disk.intent.kind === 'remove' ? [] : [{ disk, defined }];
  });
  const declared = domain.declaration?.disks ?? [];
  const undeclared = present.filter(({ disk }) => !disk.byRule && !declared.some(({ dev }) => dev === disk.dev));
  const declares = domain.declarationProblem === null && undeclared.length > 0;
  const policyless = present.filter(({ defined }) => !hasStopPolicy(defined));
  const behind = !stopped ? [] : present.filter(({ disk, defined }) => namesOther(disk, defined));
  if (!declares && policyless.length === 0 && behind.length === 0) return null;
  const formerly = (dev: string): DeclaredDisk | undefined => {
    const former = [...renamed].find(([, to]) => to === dev)?.[0];
    return declared.find((disk) => disk.dev === former);
  };
  return {
    what: [
      ...(declares ? [`the declaration of ${undeclared.map(({ disk }) => disk.dev).join(', ')}`] : []),
      ...policyless.map(({ disk }) => `error_policy='stop' of ${disk.dev}`),
      ...behind.map(({ disk }) => `the source of ${disk.dev}: ${imageName(startImage(disk))}`),
    ],
    declaration: declares
      ? {
          policy: record.policy,
          disks: [
            ...declared.filter((disk) => !moved(disk)),
            ...undeclared.map(({ disk, defined }) => declaredAgain(disk, defined, formerly(disk.dev))),
          ],
        }
      : null,
    edit: (xml) => {
      const stopping = withStopPolicy(
        xml,
        policyless.map(({ disk }) => disk.dev),
      );
      return behind.reduce((text, { disk }) => withDiskImage(text, disk.dev, startImage(disk)), stopping);
    },
  };
}

/** The declaration of a disk as far as its record and its definition know it. */
export function declaredAgain(
  { dev, mirror, primary, unencryptedMirror, rebuildTo, rebuildAuto }: DiskRecord,
  { errorPolicy, readErrorPolicy }: DomainDisk,
  formerly?: DeclaredDisk,
): DeclaredDisk {
  return {
    dev,
    mirror: mirror.image,
    ...(unencryptedMirror && { unencryptedMirror }),
    rebuild: rebuildTo === null ? null : { to: rebuildTo, format: primary.image.format, auto: rebuildAuto },
    previousErrorPolicy: formerly?.previousErrorPolicy ?? { errorPolicy, readErrorPolicy },
  };
}

/** The copy that a start must be from: the primary if it is current. */
function startImage({ primary, mirror }: DiskRecord): Image {
  return (primary.current ? primary : mirror).image;
}

/** The definition names one of our copies, but not the one to start from. An image that is none of them is the user's own choice. */
export function namesOther(
  { primary, mirror, retired, contested }: DiskRecord,
  defined: DomainDisk | undefined,
): boolean {
  const image = defined?.image ?? null;
  if (image === null || (!primary.current && !mirror.current)) return false;
  const [right, other] = primary.current ? [primary, mirror] : [mirror, primary];
  if (sameStorage(image, right.image)) return false;
  const ours = other === mirror && contested !== null ? [] : [other.image];
  return [...ours, ...retired].some((copy) => sameStorage(copy, image));
}
