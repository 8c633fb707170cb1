import type { DomainMemory } from '../domain-memory.ts';
import type { DiskState } from '../model.ts';
import type { DiskObservation, Hang, Observation } from '../observation.ts';
import { mustNotWait } from '../planner/hang.ts';
import { copiesInUse } from './copies-in-use.ts';

/** The state of a running disk whose requests don't end, and what there is to do. */
export function hungState(domain: string, disk: DiskObservation, hang: Hang): { state: DiskState; reason: string } {
  const { side, since } = hang;
  const goesOn = "the guest's I/O waits, and goes on when it does";
  if (side === null) {
    return { state: 'waiting', reason: `the guest's I/O has waited since ${since}, though the storage answers` };
  }
  if (side === 'both') {
    return { state: 'broken', reason: `neither copy has answered since ${since}; the guest's I/O waits for both` };
  }
  if (disk.graph?.layout === 'pair') {
    const byHand = `To go on without it, with a reboot: virsh destroy ${domain}, then virt-cdp start ${domain}`;
    return { state: 'waiting', reason: `the ${side} has not answered since ${since}; ${goesOn}. ${byHand}` };
  }
  const isOnly = copiesInUse(disk).length === 1 || disk.record[side].current;
  const what = isOnly ? `the ${side}, the only current copy,` : `the ${side}`;
  return { state: isOnly ? 'broken' : 'waiting', reason: `${what} has not answered since ${since}; ${goesOn}` };
}

/**
 * What was seen of a domain last, with what hangs now; null if nothing does. While something in use does not answer QEMU is not looked
 * at: for its lists it asks the storage, for files' sizes, and its monitor would wait for that.
 */
export function lookWithoutAsking(last: Observation | null, memory: DomainMemory): Observation | null {
  if (last === null || memory.isStopped) return null;
  const disks = last.disks.map((disk) => {
    const known = memory.of(disk.record.dev);
    return { ...disk, hang: known.hang, silent: copiesInUse(disk).filter((side) => known.isSilent(side)) };
  });
  const look: Observation = { ...last, run: 'running', disks };
  return mustNotWait(look) ? look : null;
}

/** What there is to say of a protected disk of which a copy does not answer; null if all do. */
export function silenceRemark({ silent }: DiskObservation): string | null {
  return silent.length === 0 ? null : `the ${silent.join(' and the ')} does not answer; the guest has not asked since`;
}
