import assert from 'node:assert/strict';
import { diskNames } from '../../src/graph/names.ts';
import { stateOf } from '../../src/protection/status.ts';
import type { DiskRecord } from '../../src/protection/record.ts';
import { sameStorage } from '../../src/storage/image.ts';
import type { Copy } from './simulated-qemu.ts';
import type { SimulatedDomain } from './simulated-domain.ts';

/** What must be true of a domain at every instant, looked at from outside: the promises of the product. */
export function assertPromises(domain: SimulatedDomain): void {
  for (const disk of domain.record.disks) {
    const { dev } = disk;
    const {
      acknowledged = new Map<number, number>(),
      pending = [],
      dropped = new Set(),
    } = domain.guests.get(dev) ?? {};
    if (!disk.mirror.current) dropped.clear();
    for (const side of ['primary', 'mirror'] as const) {
      const copy = domain.copyOf(disk[side].image);
      if (!disk[side].current) copy.lostUnseen = false;
      assert.ok(
        !disk[side].current || copy.lostUnseen || copy.holds(acknowledged),
        `the record calls the ${side} of ${dev} current, but it lacks acknowledged writes`,
      );
    }
    assertWhole(domain, disk);
    const { qemu } = domain;
    if (qemu?.devices.has(dev) !== true || !domain.runs() || qemu.device(dev).root === diskNames(dev).park) continue;
    const under = qemu.copiesUnder(qemu.device(dev).root);
    // Nothing is read from the target of a mirror job, which goes when the record says so. Without a park a stranger may resume the
    // guest on its primary when the record has already left that.
    const isLeft = (copy: Copy): boolean =>
      domain.engineOf(dev) === 'mirror' &&
      ((!disk.mirror.current && copy === domain.copyOf(disk.mirror.image)) ||
        (domain.isTold(dev) && !disk.primary.current && copy === domain.copyOf(disk.primary.image)));
    for (const copy of under) {
      assert.ok(
        ((copy.lostUnseen || isLeft(copy)) && under.length > 1) || copy.holds(acknowledged),
        `the guest runs on ${copy.name}, which lacks acknowledged writes`,
      );
    }
    const [first, second] = under;
    if (first === undefined) continue;
    if (second === undefined) {
      const running = domain.copyOf(disk.primary.image) === first ? 'primary' : 'mirror';
      const other = running === 'primary' ? 'mirror' : 'primary';
      // Without a park a stranger may resume the guest in mid-surgery.
      const isTold = domain.isTold(dev);
      assert.ok(
        disk[running].current || (isTold && domain.copyOf(disk[other].image).lostUnseen),
        `the guest runs on the ${running} of ${dev} alone, which the record calls stale`,
      );
      assert.ok(
        !disk[other].current || domain.copyOf(disk[other].image).lostUnseen,
        `the guest runs on the ${running} of ${dev} alone, but the record still calls the ${other} current`,
      );
      assert.ok(
        isTold || !namesStale(domain, disk),
        `the guest runs on the ${running} of ${dev} alone, but the persistent XML names the ${other}`,
      );
      continue;
    }
    const differing = [...acknowledged.keys()].filter(
      (block) =>
        first.read(block) !== second.read(block) &&
        !dropped.has(block) &&
        !pending.some((write) => write.block === block),
    );
    assert.ok(
      under.some((copy) => copy.lostUnseen || isLeft(copy)) || differing.length === 0,
      `the pair of ${dev} differs in the blocks ${differing.join()}`,
    );
  }
  assertHonestState(domain);
}

/**
 * A mirror that is called whole as of a crash has all that was acknowledged by then, and nothing that was written later, unless somebody
 * wrote to it before QEMU had it open again.
 */
function assertWhole(domain: SimulatedDomain, { dev, mirror }: DiskRecord): void {
  const end = domain.atEnd.get(dev);
  if (end === undefined || mirror.current || mirror.consistentAsOf === null || mirror.consistentAsOf !== end.asOf)
    return;
  const copy = domain.copyOf(mirror.image);
  assert.ok(
    copy.disturbed || (copy.holds(end.acknowledged) && copy.content().every((version) => version <= end.lastTried)),
    `the mirror of ${dev} is called whole as of ${mirror.consistentAsOf}, but it is not`,
  );
}

function namesStale({ persistent, xmlFailed }: SimulatedDomain, { dev, primary, mirror }: DiskRecord): boolean {
  const named = persistent.get(dev);
  return (
    named !== undefined &&
    !xmlFailed.has(dev) &&
    [primary, mirror].some((copy) => !copy.current && sameStorage(copy.image, named))
  );
}

/** The state that is shown is never better than the truth. */
function assertHonestState(domain: SimulatedDomain): void {
  if (domain.qemu === null || !domain.runs()) return;
  const observation = domain.observe();
  for (const disk of observation.disks) {
    if (disk.graph?.layout === 'parked' || stateOf(observation, disk, null).state !== 'protected') continue;
    const { dev } = disk.record;
    const { acknowledged = new Map<number, number>() } = domain.guests.get(dev) ?? {};
    for (const side of ['primary', 'mirror'] as const) {
      const copy = domain.copyOf(disk.record[side].image);
      assert.ok(
        copy.lostUnseen || copy.holds(acknowledged),
        `${dev} is shown as protected, but its ${side} lacks acknowledged writes`,
      );
    }
  }
}

/** What a calm domain with healthy copies must have come to. */
export function assertSettled(domain: SimulatedDomain): void {
  const { qemu } = domain;
  assert.ok(qemu !== null, 'the domain runs');
  domain.untold.assertNone();
  const others = [...qemu.devices].some(
    ([dev, { ioStatus }]) => ioStatus === 'failed' && domain.diskOf(dev) === undefined,
  );
  if (domain.paused === 'io-error' && others) return;
  assert.ok(domain.paused === null || domain.paused === 'user', `the guest is left paused: ${domain.paused ?? ''}`);
  assert.ok(domain.paused === 'user' || !domain.marked, 'the mark of a surgery is left');
  for (const [dev, { pending }] of domain.guests) {
    if (!qemu.devices.has(dev)) continue;
    assert.notEqual(qemu.device(dev).root, diskNames(dev).park, `${dev} is left on the park`);
    assert.ok(!qemu.nodes.has(diskNames(dev).park), `the park of ${dev} is left`);
    if (domain.paused === null) assert.deepEqual(pending, [], `failed writes of ${dev} were never tried again`);
  }
  for (const dev of qemu.instants)
    assert.equal(domain.memoryOf(dev).verify.is, 'taken', `an instant of ${dev} is left behind`);
  for (const disk of domain.record.disks) {
    const { dev, intent, state, primary } = disk;
    assert.ok(!namesStale(domain, disk), `the persistent XML names the stale copy of ${dev}`);
    const expected = !qemu.devices.has(dev)
      ? 'waiting'
      : !primary.current
        ? 'failed-over'
        : intent.kind === 'hold'
          ? 'held'
          : 'protected';
    assert.ok(
      state === expected || (domain.paused === 'user' && state === 'broken'),
      `${dev} with the intent ${intent.kind} ends as ${state}, not ${expected}`,
    );
  }
}
