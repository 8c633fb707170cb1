import { posix } from 'node:path';
import { parseDomain, type Domain } from '../../domain/domain.ts';
import { withDiskImage } from '../../domain/edit.ts';
import type { Image } from '../../domain/image.ts';
import { errorAndHint, type CdpError } from '../../errors.ts';
import { imageName, sameStorage } from '../../storage/image.ts';
import { pathOf } from '../../storage/path.ts';
import type { DomainRecord } from '../record.ts';
import type { Same } from './name-table.ts';
import { staleCopies, type StaleCopy } from './stale-sources.ts';

/** What libvirt's hook is to do. */
export interface HookAnswer {
  /** Refuse the operation, with a message for the user. */
  refuse: { message: string } | null;
  /** The XML to put in place of libvirt's (restore, migrate); null leaves it. */
  xml: string | null;
}

const goOn: HookAnswer = { refuse: null, xml: null };

/**
 * Judges what libvirt is about to do, from the records alone: nothing is asked of libvirt, which holds the domain locked, and no
 * storage is touched. The agent answers so from memory, and the hook from the files when the agent is down.
 */
export function answerHook(
  records: DomainRecord[],
  operation: string,
  domainXml: string,
  agentIsUp: boolean,
  same: Same = sameStorage,
): HookAnswer {
  switch (operation) {
    case 'prepare':
      return judgeStart(records, parseDomain(domainXml), agentIsUp, same);
    case 'restore':
    case 'migrate':
      return onCurrentCopies(records, operation, domainXml, same);
    default:
      return goOn;
  }
}

/** Which copies of a domain are current is not guessed where its record can't be read. */
export function onUnreadable(operation: string, domainXml: string, problem: CdpError): HookAnswer {
  if (!['prepare', 'restore', 'migrate'].includes(operation)) return goOn;
  const verb = operation === 'prepare' ? 'start' : operation === 'restore' ? 'be restored' : 'be taken in';
  return refusal(parseDomain(domainXml), verb, `which of its copies is current is not known: ${errorAndHint(problem)}`);
}

function judgeStart(records: DomainRecord[], domain: Domain, agentIsUp: boolean, same: Same): HookAnswer {
  const record = ownRecord(records, domain);
  const problem =
    staleSource(records, domain, same) ??
    staleVolume(records, domain) ??
    othersCopy(records, domain, same) ??
    (record === undefined
      ? null
      : (unknownSource(record, domain) ?? mirrorStart(record, domain, same) ?? strictProblem(record, agentIsUp)));
  return problem === null ? goOn : refusal(domain, 'start', problem);
}

function ownRecord(records: DomainRecord[], domain: Domain): DomainRecord | undefined {
  return records.find(({ uuid }) => uuid === domain.uuid);
}

function refusal({ name }: Domain, verb: string, problem: string): HookAnswer {
  return { ...goOn, refuse: { message: `${name} can't ${verb}: ${problem}` } };
}

/** A disk of the domain is somebody's stale copy, whoever asks: a redefined domain, a new UUID, another name. */
export function staleSource(records: DomainRecord[], { disks }: Domain, same: Same = sameStorage): string | null {
  const copies = staleCopies(records);
  for (const { dev, image } of disks) {
    const copy = image === null ? undefined : copies.find((stale) => same(image, stale.image));
    if (image !== null && copy !== undefined) return isStale(dev, image, copy);
  }
  return null;
}

function isStale(dev: string, image: Image, { record, disk, current }: StaleCopy): string {
  return (
    `its disk ${dev}, '${imageName(image)}', is a stale copy of ${record.name}'s ${disk.dev}; ` +
    `the current one is '${imageName(current)}'. Type: virt-cdp start ${record.name}`
  );
}

/** Only libvirt knows the path of a volume, and can't be asked now; but pools call a volume by the end of it. */
function staleVolume(records: DomainRecord[], { disks }: Domain): string | null {
  const copies = staleCopies(records);
  for (const { dev, volume } of disks) {
    const copy = copies.find(({ image }) => volume !== null && posix.basename(pathOf(image) ?? '') === volume.name);
    if (volume === null || copy === undefined) continue;
    const { record, disk, image, current } = copy;
    return (
      `its disk ${dev}, the volume '${volume.name}' of pool '${volume.pool}', bears the name of '${imageName(image)}', a stale copy ` +
      `of ${record.name}'s ${disk.dev} (the current one is '${imageName(current)}'). If it is another image, name it by its path, with type='file' or 'block'`
    );
  }
  return null;
}

/** A source that can't be compared with the copies may be the stale one. */
function unknownSource(record: DomainRecord, { disks }: Domain): string | null {
  for (const { dev, primary, mirror } of record.disks) {
    const defined = disks.find((disk) => disk.dev === dev);
    if (primary.current || defined?.image !== null || defined.unsupported === null) continue;
    return (
      `whether its disk ${dev} is a current copy can't be told (${defined.unsupported}), and its former primary is stale; ` +
      `the current copy is '${imageName(mirror.image)}'. Type: virt-cdp start ${record.name}`
    );
  }
  return null;
}

/** A disk of the domain is another one's mirror, which gets that one's writes, or its primary while that one runs. */
function othersCopy(records: DomainRecord[], { uuid, disks }: Domain, same: Same): string | null {
  for (const { dev, image } of disks) {
    for (const { uuid: owner, name, disks: copies } of records) {
      if (image === null || owner === uuid) continue;
      const is = copies.flatMap((disk) =>
        disk.contested === null && same(image, disk.mirror.image)
          ? [`the mirror of ${name}'s ${disk.dev}`]
          : disk.state !== 'stopped' && same(image, disk.primary.image)
            ? [`the primary of ${name}'s ${disk.dev}, which is in use`]
            : [],
      )[0];
      if (is !== undefined)
        return `its disk ${dev}, '${imageName(image)}', is ${is}. To set it free: virt-cdp unprotect ${name}`;
    }
  }
  return null;
}

/** With both copies current a domain starts from its primary: a definition that names the mirror is behind. */
function mirrorStart(record: DomainRecord, { disks }: Domain, same: Same): string | null {
  const behind = disks.find(({ dev, image }) =>
    record.disks.some(
      (disk) =>
        disk.dev === dev &&
        disk.primary.current &&
        disk.mirror.current &&
        image !== null &&
        same(image, disk.mirror.image),
    ),
  );
  return behind === undefined
    ? null
    : `its definition names the mirror of ${behind.dev}, and the primary is current too. Type: virt-cdp start ${record.name}`;
}

/** With policy `strict` nothing is written that the mirror does not get, so a start without it is no start. */
function strictProblem({ name, policy, disks }: DomainRecord, agentIsUp: boolean): string | null {
  if (policy !== 'strict') return null;
  if (!agentIsUp) return 'its policy is strict, and the agent does not answer. Type: systemctl start virt-cdpd';
  const lost = disks.find(({ mirror }) => mirror.reachable === false);
  if (lost === undefined) return null;
  return (
    `its policy is strict, and the mirror of ${lost.dev}, '${imageName(lost.mirror.image)}', was last seen out of reach. ` +
    `Bring it back, then type: virt-cdp start ${name}`
  );
}

/**
 * The saved or migrated domain names the copies that it had; it goes on with those that are current, and nothing else changes. A copy of
 * another domain is not exchanged: that domain may run on it.
 */
function onCurrentCopies(records: DomainRecord[], operation: string, domainXml: string, same: Same): HookAnswer {
  const domain = parseDomain(domainXml);
  const own = ownRecord(records, domain);
  const others = records.filter((record) => record !== own);
  const problem =
    staleSource(others, domain, same) ??
    (own !== undefined && operation === 'restore' ? olderThanDisks(own, domain, same) : null);
  if (problem !== null) return refusal(domain, operation === 'restore' ? 'be restored' : 'be taken in', problem);
  const moved = domain.disks.flatMap(({ dev, image }) => {
    const disk = own?.disks.find((copies) => image !== null && copiesOf(copies).some((copy) => same(copy, image)));
    const current = disk && (disk.primary.current ? disk.primary : disk.mirror).image;
    return current === undefined || image === null || same(current, image) ? [] : [{ dev, current }];
  });
  if (moved.length === 0) return goOn;
  return { ...goOn, xml: moved.reduce((xml, { dev, current }) => withDiskImage(xml, dev, current), domainXml) };
}

/**
 * The guest in a saved state believes its disks to be as it left them. The state names the QEMU that was saved; where a later one is
 * known to have run on the copies, the guest would write over what it does not know of.
 */
function olderThanDisks(record: DomainRecord, { status, disks }: Domain, same: Same): string | null {
  const older = record.disks.find(
    (disk) =>
      status !== null &&
      disk.instance !== null &&
      disk.instance !== status.instance &&
      disks.some(({ image }) => image !== null && copiesOf(disk).some((copy) => same(copy, image))),
  );
  return older === undefined
    ? null
    : `its saved state is older than its disk ${older.dev}: the guest has run since, and would damage its file systems. ` +
        `Type: virsh start --force-boot ${record.name}. If the disk was put back to that time too: virt-cdp unprotect ${record.name}, then restore`;
}

function copiesOf({ primary, mirror, retired }: DomainRecord['disks'][number]): Image[] {
  return [primary.image, mirror.image, ...retired];
}
