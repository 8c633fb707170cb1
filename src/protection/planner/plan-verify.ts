import { diskNames } from '../../graph/names.ts';
import type { DiskObservation, Observation } from '../observation.ts';
import { damageOf } from './damage.ts';
import { steps, type DiskPlan } from './disk-plan.ts';
import type { PresentDisk } from './surgery.ts';

/**
 * What a verify has to say in a disk's plan; null if nothing. An instant slows the guest, and can make its writes fail: it goes first
 * when anything else is to be done to the disk, and so does one that an agent has left behind.
 */
export function planVerify(o: Observation, disk: PresentDisk): DiskPlan | null {
  const { graph, record, verify } = disk;
  const { dev } = record;
  const why = obstacleToVerify(o, disk);
  if (verify.is === 'taken') {
    const gone = graph.instant ? null : 'somebody ended it';
    return (why ?? gone) === null ? null : steps({ step: 'endInstant', dev, why: why ?? gone });
  }
  if (verify.is === 'wanted' && why === null && graph.primary !== null) {
    const { top, data } = graph.primary;
    return steps({ step: 'takeInstant', dev, sizeBytes: graph.sizeBytes, top, data, mirror: diskNames(dev).mirror });
  }
  if (graph.instant) return steps({ step: 'endInstant', dev, why });
  if (verify.is === 'repair' && why === null) {
    const { extents } = verify;
    const epochs = graph.pair?.epochs ?? [];
    return steps(
      { step: 'markDiffering', dev, sizeBytes: graph.sizeBytes, epochs, extents },
      { step: 'suspect', dev, side: 'mirror', why: 'a verify found that it differs from the primary' },
    );
  }
  return null;
}

/** Why the copies of a disk can't be compared now, as a clause; null if they can. */
export function obstacleToVerify(o: Observation, disk: DiskObservation): string | null {
  const { graph, record } = disk;
  if (graph?.layout !== 'pair' || graph.primary === null) return 'the disk is not on both copies';
  if (graph.pair?.engine === 'mirror') return 'a mirror job writes to both, and QEMU lets no other job use its target';
  if (damageOf(disk) !== 'none') return 'a copy failed';
  if (disk.ioFailed) return "the guest's I/O failed";
  if (record.intent.kind !== 'protect') return `a ${record.intent.kind} was asked for`;
  if (o.migrating) return 'the domain is being saved or migrated';
  return graph.otherJob === null ? null : `the block job ${graph.otherJob.device} runs on this disk`;
}
