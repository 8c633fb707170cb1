import type { DiskObservation, Observation } from '../observation.ts';
import { damageOf, isFirstCopy, isPairByJob } from './damage.ts';
import { mustNotWait } from './hang.ts';
import { giveUpCopy } from './plan-by-job.ts';
import { planDisk } from './plan-disk.ts';
import { sameStorage } from '../../storage/image.ts';
import type { DiskRecord, DomainRecord } from '../record.ts';
import type { Step } from '../steps.ts';
import { leavePair, type DiskStep, type Surgery } from './surgery.ts';

/**
 * The next steps for a domain, from one look at it. Pure: no I/O, no clock, no memory. Whatever state a crash left behind is one
 * more observation, so recovery needs no code of its own. An empty plan means that there is nothing to do now.
 */
export function plan(o: Observation): Step[] {
  if (mustNotWait(o)) return [];
  const astray = o.disks.find((disk) => (o.leaving && isOffItsXml(disk)) || (o.migrating && leavesItsPrimary(disk)));
  if (astray !== undefined) return [{ step: 'cancelMigration', dev: astray.record.dev }];
  const halted = o.migrating
    ? withRecords(
        o.record,
        o.disks.flatMap((disk) => withoutJobs(o, disk)),
      )
    : [];
  if (halted.length > 0 || o.run === 'hands-off') return halted;
  const plans = o.disks.map((disk) => planDisk(o, disk));
  const surgeries = plans.flatMap((disk, index) =>
    disk.kind === 'surgery' && isDue(o.disks[index]) ? [disk.surgery] : [],
  );
  if (surgeries.length > 0) return underOnePause(o, surgeries);
  const end = endOfPause(o);
  const guestWaits = end.some(({ step }) => step === 'resume');
  const idle = idleParks(o);
  if (idle.length > 0 && !guestWaits) return idle;
  const steps = plans.flatMap((disk) => (disk.kind === 'steps' ? disk.steps : []));
  // Nobody would end the pause of a domain that has no record any more.
  const forgets = steps.some(({ step }) => step === 'forget');
  if (steps.length > 0 && !(forgets && end.length > 0)) return withRecords(o.record, steps);
  return end;
}

/** libvirt's live XML, which is what another host is given, names a stale copy: nothing can change it until a rebuild ends. */
function isOffItsXml({ record: { primary, mirror }, liveImage }: DiskObservation): boolean {
  return !primary.current && mirror.current && liveImage !== null && !sameStorage(liveImage, mirror.image);
}

/**
 * A mirror job's pair whose primary is to be left, and may lack what was acknowledged: a save or a migration would have it left for that
 * primary, and the mirror brought up to date from it later.
 */
function leavesItsPrimary(disk: DiskObservation): boolean {
  const { graph, record } = disk;
  const { primary, mirror, intent } = record;
  if (graph === null || !isPairByJob(graph) || graph.pair?.inSync !== true || !mirror.current) return false;
  const damage = damageOf(disk);
  return damage === 'primary' || (damage === 'none' && (!primary.current || intent.kind === 'failover'));
}

/** The target of a job keeps QEMU from giving its images up. */
function withoutJobs(o: Observation, disk: DiskObservation): DiskStep[] {
  const { graph, record } = disk;
  const { dev } = record;
  if (graph === null) return [];
  if (isFirstCopy(disk)) return giveUpCopy(record);
  if (isPairByJob(graph) && graph.primary !== null) return leavePair(o, { ...disk, graph }, graph.primary);
  return [
    ...(graph.syncJob === null ? [] : [{ step: 'cancelSync', dev } as const]),
    ...(graph.instant ? [{ step: 'endInstant', dev, why: 'the domain is being saved or migrated' } as const] : []),
  ];
}

/**
 * A park node fails every flush, also those with which QEMU ends a save or a migration (QEMU, migration.c: migration_completion calls
 * vm_stop_force_state): it is there for a surgery and no longer, and goes before anything else that can wait.
 */
function idleParks(o: Observation): Step[] {
  return o.disks.flatMap(({ record: { dev }, graph }) =>
    graph?.parkReady === true && graph.layout !== 'parked' ? [{ step: 'removePark', dev } as const] : [],
  );
}

/** A guest that runs is not paused again at once for a surgery that failed; one that waits for its disk is not kept waiting. */
function isDue(disk: DiskObservation | undefined): boolean {
  return (
    disk !== undefined &&
    (disk.mayRetry || disk.ioFailed || disk.graph?.layout === 'parked' || damageOf(disk) !== 'none')
  );
}

/**
 * All disks' surgeries in one pause: parked, operated on, recorded together, and only then given back to the guest. A pause that was
 * there before is marked too: somebody may end it in mid-surgery, and then the guest is stopped again by us.
 */
function underOnePause(o: Observation, surgeries: Surgery[]): Step[] {
  const record = surgeries.reduce((domain, { record: disk }) => withDisk(domain, disk), o.record);
  const recorded = surgeries.some((surgery) => surgery.recorded);
  const parking = surgeries.filter(({ parks }) => parks);
  const staysParked = o.disks.some(
    ({ record: { dev }, graph }) =>
      graph?.layout === 'parked' && !surgeries.some((surgery) => surgery.dev === dev && surgery.root !== null),
  );
  const stillFails = o.disks.some(
    (disk) => disk.ioFailed && !mended(disk) && !surgeries.some(({ dev }) => dev === disk.record.dev),
  );
  const resumes = o.run !== 'suspended' && !staysParked && !stillFails && surgeries.every(({ root }) => root !== null);
  return [
    ...surgeries.flatMap(({ before }) => before),
    ...(o.surgeryMarked ? [] : [{ step: 'markSurgery' } as const]),
    ...(o.run === 'running' ? [{ step: 'pause' } as const] : []),
    ...parking.map(({ dev, qdev, from }) => ({ step: 'park', dev, qdev, root: from }) as const),
    ...surgeries.flatMap(({ parked }) => parked),
    ...(recorded ? [{ step: 'record', record } as const] : []),
    ...surgeries.flatMap(({ told }) => told),
    ...surgeries.flatMap(({ dev, persist }) =>
      persist === null ? [] : [{ step: 'defineSource', dev, image: persist } as const],
    ),
    ...parking.flatMap(({ dev, qdev, root }) =>
      root === null ? [] : [{ step: 'unpark', dev, qdev, node: root } as const],
    ),
    ...surgeries.flatMap(({ given }) => given),
    ...(resumes ? [{ step: 'resume' } as const, { step: 'unmarkSurgery' } as const] : []),
    ...(resumes ? parking.map(({ dev }) => ({ step: 'removePark', dev }) as const) : []),
    ...(resumes || o.run === 'suspended'
      ? withRecords(
          record,
          surgeries.flatMap(({ after }) => after),
        )
      : []),
  ];
}

/** With nothing left to do, a pause that is ours ends, and so does one for an I/O error whose copy answers again. */
function endOfPause(o: Observation): Step[] {
  const unmark = o.surgeryMarked ? [{ step: 'unmarkSurgery' } as const] : [];
  if (o.run === 'running' || o.run === 'suspended') return unmark;
  if (o.disks.some(({ graph }) => graph?.layout === 'parked')) return [];
  const failing = o.disks.filter(({ ioFailed }) => ioFailed);
  const ends =
    failing.every(mended) && (o.run === 'surgery' || (o.run === 'io-error' && (failing.length > 0 || o.surgeryMarked)));
  return ends ? [{ step: 'resume' }, ...unmark] : [];
}

/** The copy whose I/O failed answers again, or its disk was unplugged. A guest never goes on over a pair that failed: what the copies lack is known only to its epochs. */
function mended({ graph, health, mayRetry, record }: DiskObservation): boolean {
  if (graph === null) return true;
  return (
    mayRetry && graph.layout !== 'pair' && health[record.primary.current ? 'primary' : 'mirror'].is === 'answering'
  );
}

/** Turns a disk's record into a step that writes the domain's, with what the steps before it recorded. */
function withRecords(record: DomainRecord, steps: DiskStep[]): Step[] {
  let latest = record;
  return steps.map((step) => {
    if (step.step !== 'recordDisk') return step;
    latest = withDisk(latest, step.record);
    return { step: 'record', record: latest };
  });
}

export function withDisk(domain: DomainRecord, disk: DiskRecord): DomainRecord {
  return { ...domain, disks: domain.disks.map((other) => (other.dev === disk.dev ? disk : other)) };
}
