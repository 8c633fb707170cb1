import { parseDomain } from '../../src/domain/domain.ts';
import { errorText } from '../../src/errors.ts';
import { imageName } from '../../src/storage/image.ts';
import { checkBlocks } from '../lab/copies.ts';
import type { NbdServer } from '../lab/storage.ts';
import { waitFor } from '../lab/wait.ts';
import { Violation } from './violation.ts';
import { diskXml, type DomainInForce, type World } from './world.ts';

/** What became of a deed, in a few words: `done`, or why not. */
export type Outcome = string;

/** The agent's answer to a request that it may refuse. */
export async function told(request: Promise<unknown>): Promise<Outcome> {
  try {
    await request;
    return 'done';
  } catch (error) {
    return `refused: ${errorText(error)}`;
  }
}

export async function mend(world: World, server: NbdServer): Promise<Outcome> {
  const inForce = world.faults.get(server);
  if (inForce === undefined) return 'skipped: not broken';
  server.heal();
  if (inForce.fault === 'dead') await server.restart();
  if (inForce.fault === 'hung') server.unhang();
  world.faults.delete(server);
  return 'done';
}

/** Whoever starts a domain, it starts on images that hold every write that was acknowledged before, or not at all. */
export async function start(world: World, domain: DomainInForce, by: 'virsh' | 'virt-cdp'): Promise<Outcome> {
  if (await world.isRunning(domain.name)) return 'skipped: it runs';
  const promised = new Map(domain.disks.map(({ dev }) => [dev, domain.guest.witness.promised(dev)]));
  const outcome =
    by === 'virsh' ? await world.virsh('start', domain.name) : await told(world.client.act(domain.name, 'start', {}));
  if (outcome !== 'done') return outcome;
  for (const { dev, image } of parseDomain(await world.reached(() => domain.guest.xml())).disks) {
    const expected = promised.get(dev);
    if (expected === undefined || image === null) continue;
    const { file: filename, format, source } = world.named(imageName(image));
    const { missing } = await checkBlocks({ filename, format }, dev, expected);
    if (missing.length > 0)
      throw new Violation(
        `${domain.name} was started by ${by} with ${dev} on '${source}', which lacks ${missing.length} acknowledged writes`,
      );
  }
  return 'done';
}

export async function rebuild(world: World, domain: string, dev: string, to: 'new' | 'original'): Promise<Outcome> {
  if (to === 'original') return told(world.client.act(domain, 'rebuild', { disk: dev, to }));
  const disk = (await world.status(domain))?.disks.find((one) => one.dev === dev);
  if (disk?.state !== 'failed-over') return 'skipped: not failed over';
  const { format, on } = world.disk(domain, dev).shape.primary;
  const target = await world.makeCopy(`${domain}-${dev}-primary`, on === 'file' ? 'server' : on, format);
  return told(world.client.act(domain, 'rebuild', { disk: dev, toXml: diskXml(target) }));
}

/** libvirt that is restarted while a backup begins knows nothing any more of the jobs that it has started, and ends none of them. */
export async function endLostBackup(world: World, { name, guest }: DomainInForce): Promise<void> {
  if (!(await world.isRunning(name))) return;
  const lost = async (): Promise<{ id: string; status: string }[]> => {
    const jobs = (await guest.qmp('query-jobs')) as { id: string; status: string }[];
    return jobs.filter(({ id }) => id.startsWith('backup-'));
  };
  await waitFor(
    `the backup of ${name} to end`,
    async () => {
      const jobs = await lost();
      for (const { id, status } of jobs)
        await guest.qmp(status === 'concluded' ? 'job-dismiss' : 'job-cancel', { id }).catch(() => undefined);
      return jobs.length === 0;
    },
    10_000,
  ).catch(() => undefined);
}
