import { setTimeout as sleep } from 'node:timers/promises';
import { errorText } from '../../src/errors.ts';
import type { DomainStatus } from '../../src/protection/model.ts';
import { checkBlocks, type Promised } from '../lab/copies.ts';
import { Violation } from './violation.ts';
import type { Copy, DomainInForce, World } from './world.ts';

/** No promise has a deadline as long as this; the agent asks a copy that fails at most 30 s apart. */
export const patienceMs = 75_000;

/** So many acknowledgements more cannot have been under way before. */
const surelyLater = 10;

/** All that must hold at any moment, whatever is in force. @throws Violation */
export async function checkPromises(world: World): Promise<void> {
  for (const domain of world.domains) {
    checkGuest(domain);
    await checkSuspension(world, domain);
    await checkCopies(world, domain);
  }
  await Promise.all(world.domains.map((domain) => checkProgress(world, domain)));
}

/** The guest saw nothing of it all. */
export function checkGuest({ name, guest: { witness } }: DomainInForce): void {
  if (witness.errors.length > 0)
    throw new Violation(`${name}'s guest saw errors: ${JSON.stringify(witness.errors.slice(0, 5))}`);
}

/** Who suspends a domain finds it suspended. */
async function checkSuspension(world: World, domain: DomainInForce): Promise<void> {
  const state = await world.state(domain.name);
  if (state.startsWith('running') && domain.suspendSeen)
    throw new Violation(`${domain.name} was suspended by a stranger, and nobody but virt-cdp can have resumed it`);
  domain.suspendSeen = domain.suspendAsked && /^paused \(user\)/.test(state);
  if (state.startsWith('running')) domain.suspendAsked = false;
}

/** Every copy that is called current holds every write that was acknowledged before the question; and there is such a copy. */
export async function checkCopies(world: World, { name, guest, disks }: DomainInForce): Promise<void> {
  const promised = new Map(disks.map(({ dev }) => [dev, guest.witness.promised(dev)]));
  const status = await statusInTime(world, name);
  for (const disk of status?.disks ?? []) {
    const current = [disk.primary, disk.mirror].filter((copy) => copy.current);
    if (current.length === 0) throw new Violation(`no copy of ${name}'s ${disk.dev} is called current`);
    for (const { source } of current) {
      const missing = await missingOn(
        world.named(source),
        disk.dev,
        promised.get(disk.dev) ?? { boots: [], records: new Map() },
      );
      if (missing.length === 0 || (await hasNewOverlay(world, name, disk.dev, source))) continue;
      throw new Violation(
        `'${source}' is called a current copy of ${name}'s ${disk.dev} (${disk.state}), but lacks ${missing.length} acknowledged writes: ` +
          JSON.stringify(missing.slice(0, 3)),
      );
    }
  }
}

/** Until an external snapshot is noticed, a moment later, the image below is called the primary. */
async function hasNewOverlay(world: World, name: string, dev: string, source: string): Promise<boolean> {
  const deadline = Date.now() + 5_000;
  for (;;) {
    const now = (await statusInTime(world, name))?.disks.find((disk) => disk.dev === dev);
    if (now !== undefined && world.named(now.primary.source).backing?.source === source) return true;
    if (Date.now() > deadline) return false;
    await sleep(200);
  }
}

/** A block that is being written may be half old and half new, for a moment. */
async function missingOn({ file: filename, format }: Copy, dev: string, promised: Promised): Promise<unknown[]> {
  let rest = promised.records;
  for (let look = 1; ; look++) {
    const { missing } = await checkBlocks({ filename, format }, dev, { ...promised, records: rest });
    if (missing.length === 0 || look === 3) return missing;
    rest = new Map(missing.map(({ block, expected }) => [block, expected]));
    await sleep(200);
  }
}

/** The guest goes on, or there is a reason that is none of virt-cdp's making. */
async function checkProgress(world: World, domain: DomainInForce): Promise<void> {
  const { witness } = domain.guest;
  const before = domain.disks.map(({ dev }) => witness.acknowledged(dev));
  const deadline = Date.now() + patienceMs;
  for (;;) {
    if (domain.disks.every(({ dev }, index) => witness.acknowledged(dev) > before[index]!)) return;
    const excuse = await excuseOf(world, domain);
    if (excuse !== null) return;
    if (Date.now() > deadline)
      throw new Violation(`${domain.name} runs, and has written nothing for ${patienceMs / 1000} s without a reason`);
    await sleep(200);
  }
}

/** Why a guest need not go on now. */
async function excuseOf(world: World, { name, shape, disks, suspendAsked }: DomainInForce): Promise<string | null> {
  const state = await world.state(name);
  if (state.startsWith('shut off')) return 'it is off';
  if (suspendAsked && state.startsWith('paused')) return 'a stranger suspended it';
  const status = await statusInTime(world, name);
  const hung = disks.some(({ copies }) => Object.values(copies).some((copy) => world.faultsOf(copy).includes('hung')));
  if (hung && state.startsWith('paused (starting up)')) return 'its start waits for a primary that hangs';
  // Two faults of one domain at once: whoever pauses it for the one waits for the other.
  if (hung && status?.disks.some(({ reason }) => reason?.includes('has not answered its monitor') === true) === true)
    return 'QEMU waits for a copy that hangs';
  for (const { dev, copies } of disks) {
    const known = status?.disks.find((disk) => disk.dev === dev);
    const needed = [copies.primary, ...(known === undefined ? [] : [copies.mirror])];
    const broken = (copy: Copy): boolean => world.faultsOf(copy).length > 0;
    if (known === undefined || shape.policy === 'strict') {
      if (needed.some(broken)) return `${dev}: a copy is broken`;
    } else if (needed.every((copy) => broken(copy) || !isCurrent(known, copy)))
      return `${dev}: no current copy answers`;
  }
  return null;
}

function isCurrent({ primary, mirror }: DomainStatus['disks'][number], { source }: Copy): boolean {
  return [primary, mirror].some((copy) => copy.current && copy.source === source);
}

/** The agent answers after a moment, whatever happens to libvirt. */
export async function statusInTime(world: World, name: string): Promise<DomainStatus | null> {
  const deadline = Date.now() + patienceMs;
  for (;;) {
    try {
      return await world.status(name);
    } catch (error) {
      if (Date.now() > deadline) throw new Violation(`the agent tells no status of ${name}: ${errorText(error)}`);
      await sleep(200);
    }
  }
}

/** A copy whose server takes no writes can't be current once the guest has gone on. @throws Violation */
export async function checkFaultsAreSeen(world: World): Promise<void> {
  for (const { name, guest, disks } of world.domains) {
    const acknowledged = new Map(disks.map(({ dev }) => [dev, guest.witness.acknowledged(dev)]));
    const inForce = new Map(world.faults);
    const status = await world.status(name).catch(() => null);
    for (const { dev, primary, mirror } of status?.disks ?? []) {
      for (const { source, current } of [primary, mirror]) {
        const { server } = world.named(source);
        const fault = server === null ? undefined : inForce.get(server);
        if (!current || server === null || fault === undefined || fault.fault === 'read-errors') continue;
        if (world.faults.get(server) !== fault || (acknowledged.get(dev) ?? 0) < fault.acknowledged + surelyLater)
          continue;
        throw new Violation(
          `'${source}' takes no writes (${fault.fault}), ${name}'s guest went on, and yet it is called a current copy of ${dev}`,
        );
      }
    }
  }
}
