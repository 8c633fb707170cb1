import type { DiskState } from '../model.ts';
import type { DiskObservation, Hang, Observation } from '../observation.ts';
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
 * What was seen of a domain last, with what hangs now; null if nothing does. While requests hang QEMU is not looked at: what it would ask
 * its storage might hang, too, and its monitor with that.
 */
export function hungLook(last: Observation | null, hangOf: (dev: string) => Hang | null): Observation | null {
  const disks = last?.disks.map((disk) => ({ ...disk, hang: hangOf(disk.record.dev) })) ?? [];
  return last === null || disks.every(({ hang }) => hang === null) ? null : { ...last, run: 'running', disks };
}

/** What there is to say of a protected disk of which a copy does not answer; null if all do. */
export function silenceRemark({ silent }: DiskObservation): string | null {
  return silent.length === 0 ? null : `the ${silent.join(' and the ')} does not answer; the guest has not asked since`;
}
