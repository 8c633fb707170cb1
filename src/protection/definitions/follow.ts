import type { DeclaredDisk } from '../../domain/declaration.ts';
import { errorText } from '../../errors.ts';
import { imageName, sameStorage } from '../../storage/image.ts';
import type { Log } from '../../log.ts';
import { whyContested, type Domains } from '../image-users.ts';
import { withDisk } from '../planner/plan.ts';
import type { Followed, Protector } from '../protector.ts';
import { newDiskRecord, type DiskRecord, type DomainRecord } from '../record.ts';
import type { Note } from './compare.ts';
import type { Definition } from './definitions.ts';

interface Surroundings extends Domains {
  readonly log: Log;
  /** Work that finds out whether an image is free and takes it: one at a time on this host. */
  claiming<T>(work: () => Promise<T>): Promise<T>;
}

/**
 * Lets a domain's record and what libvirt has of the domain agree again, whoever changed that: names and the policy follow the
 * definition, disks that it declares besides begin a record, and what it no longer says but must is put back.
 */
export async function followDefinition(host: Surroundings, protector: Protector): Promise<void> {
  await protector.follow(async (before, save) => {
    const definition = await host.definitions.read(before.uuid);
    if (definition === null) return null;
    const { record, added, remarks, notes, restoration } = await host.definitions.compare(
      before,
      definition,
      protector.live !== null,
    );
    const disputed = record.disks.some(({ contested }) => contested !== null);
    const told: Note[] = [...notes];
    if (added.length > 0 || disputed) {
      await host.claiming(async () => {
        const adopted = await adopt(host, definition, record, added);
        told.push(...adopted.notes);
        if (adopted.record !== before) await save(adopted.record);
      });
    } else if (record !== before) await save(record);
    if (restoration !== null) told.push(await restore(host, definition, restoration));
    return { remarks, notes: told } satisfies Followed;
  });
}

/** A declaration that came with the domain's XML (an import, Terraform, virsh edit) begins a record: mirror not current. */
async function adopt(
  host: Surroundings,
  { ref, domain }: Definition,
  before: DomainRecord,
  added: DeclaredDisk[],
): Promise<{ record: DomainRecord; notes: Note[] }> {
  const notes: Note[] = [];
  let record = before;
  for (const disk of before.disks) {
    if (disk.contested === null) continue;
    const declared = domain.declaration?.disks.find(({ dev }) => dev === disk.dev)?.mirror ?? disk.mirror.image;
    const corrected = sameStorage(declared, disk.mirror.image)
      ? disk
      : { ...disk, mirror: { ...disk.mirror, image: declared } };
    const judged = await judge(host, record, corrected, notes);
    if (judged !== disk) record = withDisk(record, judged);
  }
  for (const disk of added) {
    const defined = domain.disks.find(({ dev }) => dev === disk.dev);
    if (defined?.image == null || defined.unsupported !== null) {
      const why = defined?.unsupported ?? 'the domain has no such disk';
      host.log.warn('a declared disk can not be protected', { domain: ref.name, disk: disk.dev, why });
      continue;
    }
    const { dev, mirror } = disk;
    const policy = domain.declaration?.policy ?? before.policy;
    notes.push({ event: 'declared', disk: dev, detail: { mirror: imageName(mirror), policy } });
    const judged = await judge(host, record, newDiskRecord(disk, defined.image, ref.id >= 0), notes);
    record = { ...record, policy, disks: [...record.disks, judged] };
  }
  return { record, notes };
}

/** A mirror belongs to one disk: to the one that had it first. */
async function judge(
  host: Surroundings,
  { uuid, disks }: DomainRecord,
  disk: DiskRecord,
  notes: Note[],
): Promise<DiskRecord> {
  const { dev, mirror, primary } = disk;
  const sibling = disks.find((other) => other.dev !== dev && sameStorage(other.mirror.image, mirror.image));
  const contested =
    sibling === undefined || sibling.contested !== null
      ? await whyContested(host, { uuid, dev }, mirror.image, primary.image)
      : `the declared mirror '${imageName(mirror.image)}' is that of the domain's own disk ${sibling.dev} already; declare another with virsh edit`;
  if (contested === disk.contested) return disk;
  if (contested !== null) notes.push({ event: 'mirror-contested', disk: dev, detail: { why: contested } });
  return { ...disk, contested };
}

async function restore(
  host: Surroundings,
  definition: Definition,
  restoration: Parameters<Surroundings['definitions']['restore']>[1],
): Promise<Note> {
  const detail = { what: restoration.what };
  try {
    await host.definitions.restore(definition, restoration);
    return { event: 'definition-restored', disk: null, detail };
  } catch (error) {
    return {
      event: 'step-failed',
      disk: null,
      detail: { step: 'restore the definition', error: errorText(error), ...detail },
    };
  }
}
