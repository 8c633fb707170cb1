import { setTimeout as sleep } from 'node:timers/promises';
import type { DiskStatus } from '../../src/protection/model.ts';
import { nodeNames } from '../integration/scene.ts';
import { compareCopies } from '../lab/copies.ts';
import { waitFor } from '../lab/wait.ts';
import { checkGuest, patienceMs, statusInTime } from './checks.ts';
import { endLostBackup, mend, rebuild, start, told, type Outcome } from './remedies.ts';
import { Violation } from './violation.ts';
import type { Copy, DomainInForce, World } from './world.ts';

/** An impatient administrator tries again after so long. */
const againMs = 3_000;

/** Mends everything that is in force; then all disks come to be protected, and their copies are identical. @throws Violation */
export async function settle(world: World, { rebuildTo }: { rebuildTo: 'new' | 'original' }): Promise<Outcome> {
  const done: string[] = [];
  for (const server of [...world.faults.keys()]) await mend(world, server);
  for (const domain of world.domains) {
    await world.virsh('domjobabort', domain.name);
    await endLostBackup(world, domain);
    if (domain.suspendAsked) {
      domain.suspendAsked = domain.suspendSeen = false;
      // One that was saved as it was suspended comes back suspended.
      if (!(await world.isRunning(domain.name))) await startSomehow(world, domain);
      await world.virsh('resume', domain.name);
    }
  }
  await Promise.all(world.domains.map((domain) => untilProtected(world, domain, rebuildTo, done)));
  // What a crash did to a copy that nobody used since shows late.
  for (const domain of world.domains)
    while (!(await compareAll(world, domain))) await untilProtected(world, domain, rebuildTo, done);
  world.crashed.clear();
  await world.retireServers();
  return ['done', ...done].join('; ');
}

/** Does what an administrator would, until every disk of the domain is protected and the guest writes. */
async function untilProtected(
  world: World,
  domain: DomainInForce,
  rebuildTo: 'new' | 'original',
  done: string[],
): Promise<void> {
  const { name, guest, disks } = domain;
  const deadline = Date.now() + 2 * patienceMs;
  const tried = new Map<string, number>();
  const act = async (what: string, action: () => Promise<Outcome>): Promise<void> => {
    if (Date.now() < (tried.get(what) ?? 0) + againMs) return;
    tried.set(what, Date.now());
    const outcome = await action();
    done.push(`${name}: ${what}: ${outcome}`);
  };
  for (;;) {
    if (!(await world.isRunning(name))) await act('start', () => startSomehow(world, domain));
    const status = await statusInTime(world, name);
    for (const { dev } of disks) {
      const disk = status?.disks.find((one) => one.dev === dev);
      if (disk === undefined) await act(`protect ${dev}`, () => told(world.protect(domain, world.disk(name, dev))));
      else await help(world, domain, disk, rebuildTo, act);
    }
    if (status?.disks.length === disks.length && status.state === 'protected') break;
    if (Date.now() > deadline)
      throw new Violation(
        `${name} is ${status?.state ?? 'not protected'}, long after everything was mended: ` +
          (status?.disks.map(({ dev, state, reason }) => `${dev} ${state} (${reason ?? 'no reason'})`).join(', ') ??
            ''),
      );
    await sleep(200);
  }
  for (const { dev } of disks)
    await guest.witness.waitForAcks(3, patienceMs, dev).catch((error: unknown) => {
      throw new Violation(`${name} is protected, but does not write: ${String(error)}`);
    });
}

async function help(
  world: World,
  { name }: DomainInForce,
  { dev, state, reason }: DiskStatus,
  rebuildTo: 'new' | 'original',
  act: (what: string, action: () => Promise<Outcome>) => Promise<void>,
): Promise<void> {
  if (state === 'held') await act('release', () => told(world.client.act(name, 'release', {})));
  if (state === 'failed-over')
    await act(`rebuild ${dev}`, async () => {
      const outcome = await rebuild(world, name, dev, rebuildTo);
      return outcome === 'done' || rebuildTo === 'new' ? outcome : rebuild(world, name, dev, 'new');
    });
  if (state === 'waiting' && reason?.startsWith('the block job') === true)
    await act(`abort the job on ${dev}`, () => world.virsh('blockjob', name, dev, '--abort'));
}

/** As an administrator would: virsh, then what its message says, then with a definition that names the current copy. */
async function startSomehow(world: World, domain: DomainInForce): Promise<Outcome> {
  const byVirsh = await start(world, domain, 'virsh');
  if (byVirsh === 'done') return byVirsh;
  const byUs = await start(world, domain, 'virt-cdp');
  if (byUs === 'done') return `done by virt-cdp; virsh: ${byVirsh}`;
  for (const { dev, primary, mirror } of (await statusInTime(world, domain.name))?.disks ?? [])
    await world.redefine(domain, dev, world.named((primary.current ? primary : mirror).source));
  return `${await start(world, domain, 'virsh')} with another definition; virsh: ${byVirsh}; virt-cdp: ${byUs}`;
}

/** The copies of a suspended domain are identical, and nothing of a surgery is left in its QEMU; false if it is not protected any more. */
async function compareAll(world: World, domain: DomainInForce): Promise<boolean> {
  const { name, guest, disks } = domain;
  checkGuest(domain);
  await world.lab.virsh('suspend', name);
  const status = await statusInTime(world, name);
  if (status?.state !== 'protected') {
    await world.lab.virsh('resume', name);
    return false;
  }
  for (const { dev, primary, mirror } of status.disks) {
    const [a, b] = [world.named(primary.source), world.named(mirror.source)];
    const { identical, detail } = await compareCopies(image(a), image(b));
    if (!identical) throw new Violation(`the copies of ${name}'s ${dev} are protected, and differ: ${detail}`);
  }
  const ours = disks.flatMap(({ dev }) =>
    ['', '-mirror', '-mirror-storage', '-park', '-park-null', '-nothing'].map((part) => `cdp-${dev}${part}`),
  );
  const isNote = (node: string): boolean => disks.some(({ dev }) => node.startsWith(`cdp-${dev}-socket-`));
  let left: string[] = [];
  // A copy that is asked has nodes of its own for a moment.
  await waitFor(
    'nothing to be left',
    async () => {
      const nodes = await nodeNames(guest);
      left = nodes.filter((node) => node.startsWith('cdp-') && !ours.includes(node) && !isNote(node));
      return left.length === 0;
    },
    5_000,
  ).catch(() => {
    throw new Violation(`left in ${name}'s QEMU: ${left.join()}`);
  });
  await world.lab.virsh('resume', name);
  return true;
}

function image({ file, format }: Copy): { filename: string; format: 'raw' | 'qcow2' } {
  return { filename: file, format };
}
