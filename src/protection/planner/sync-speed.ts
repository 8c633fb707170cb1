import type { BlockJob } from '../../qmp/commands.ts';
import type { DiskStep, PresentDisk } from './surgery.ts';

/** So many delta passes go at the guest's pace. If it still writes faster than they copy, its last pause would get ever longer. */
const pacedPasses = 2;

/** The step that gives a running sync the speed that it may have now; none if it has it. */
export function speedStep({ record, graph, pace, deltaPasses }: PresentDisk, job: BlockJob): DiskStep[] {
  // Bytes that are copied again count again: the guest writes more than half of what the mirror job copies, which may never be ready.
  const overtaken = job.type === 'mirror' && job.offset > 2 * graph.sizeBytes;
  const starving = job.type === 'backup' && deltaPasses >= pacedPasses;
  const bytesPerS = overtaken || starving ? pace.mostBytesPerS : pace.bytesPerS;
  if (job.ready || job.status === 'concluded' || job.speed === bytesPerS) return [];
  return [{ step: 'setSpeed', dev: record.dev, job: job.device, bytesPerS }];
}
