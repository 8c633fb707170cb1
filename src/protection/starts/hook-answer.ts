import { parseDomain, type Domain } from '../../domain/domain.ts';
import { withDiskImage } from '../../domain/edit.ts';
import type { Image } from '../../domain/image.ts';
import { imageName, sameStorage } from '../../storage/image.ts';
import type { DiskRecord, DomainRecord } from '../record.ts';

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
): HookAnswer {
  switch (operation) {
    case 'prepare':
      return judgeStart(records, parseDomain(domainXml), agentIsUp);
    case 'restore':
    case 'migrate':
      return onCurrentCopies(records, domainXml);
    default:
      return goOn;
  }
}

function judgeStart(records: DomainRecord[], domain: Domain, agentIsUp: boolean): HookAnswer {
  const record = records.find(({ uuid }) => uuid === domain.uuid);
  const problem =
    staleSource(records, domain) ??
    (record === undefined ? null : (mirrorStart(record, domain) ?? strictProblem(record, agentIsUp)));
  return problem === null ? goOn : { ...goOn, refuse: { message: `${domain.name} can't start: ${problem}` } };
}

/** A disk of the domain is somebody's stale copy, whoever asks: a redefined domain, a new UUID, another name. */
export function staleSource(records: DomainRecord[], { disks }: Domain): string | null {
  for (const { dev, image } of disks) {
    const found = image === null ? null : staleCopy(records, image);
    if (image === null || found === null) continue;
    const { record, disk, current } = found;
    return (
      `its disk ${dev}, '${imageName(image)}', is a stale copy of ${record.name}'s ${disk.dev}; ` +
      `the current one is '${imageName(current)}'. Type: virt-cdp start ${record.name}`
    );
  }
  return null;
}

function staleCopy(
  records: DomainRecord[],
  image: Image,
): { record: DomainRecord; disk: DiskRecord; current: Image } | null {
  for (const record of records) {
    for (const disk of record.disks) {
      const { primary, mirror } = disk;
      if (!primary.current && sameStorage(image, primary.image)) return { record, disk, current: mirror.image };
      if (!mirror.current && sameStorage(image, mirror.image)) return { record, disk, current: primary.image };
      if (disk.retired.some((former) => sameStorage(image, former))) {
        return { record, disk, current: (primary.current ? primary : mirror).image };
      }
    }
  }
  return null;
}

/** With both copies current a domain starts from its primary: a definition that names the mirror is behind. */
function mirrorStart(record: DomainRecord, { disks }: Domain): string | null {
  const behind = disks.find(({ dev, image }) =>
    record.disks.some(
      (disk) =>
        disk.dev === dev &&
        disk.primary.current &&
        disk.mirror.current &&
        image !== null &&
        sameStorage(image, disk.mirror.image),
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

/** The saved or migrated domain names the primary that it had; it goes on with the copy that is current. Nothing else changes. */
function onCurrentCopies(records: DomainRecord[], domainXml: string): HookAnswer {
  const domain = parseDomain(domainXml);
  const moved = domain.disks.flatMap(({ dev, image }) => {
    const found = image === null ? null : staleCopy(records, image);
    return found === null ? [] : [{ dev, current: found.current }];
  });
  if (moved.length === 0) return goOn;
  return { ...goOn, xml: moved.reduce((xml, { dev, current }) => withDiskImage(xml, dev, current), domainXml) };
}
