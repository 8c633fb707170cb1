import type { PrimaryNodes } from '../../graph/view.ts';
import type { Observation } from '../observation.ts';
import type { DiskRecord } from '../record.ts';
import { nothing, steps, surgery, type DiskPlan } from './disk-plan.ts';
import { speedStep } from './sync-speed.ts';
import { beginPair, newBitmap, openMirror, type DiskStep, type PresentDisk } from './surgery.ts';

/**
 * Protects a disk whose guest is told of I/O errors. Nothing may be put under it that fails a request because of us: no park, no quorum, and
 * no backup job, whose filter fails a write with its target. A mirror job does not, and can only copy everything.
 */
export function planPairByJob(o: Observation, disk: PresentDisk, primary: PrimaryNodes): DiskPlan {
  const { graph, record, health, mayRetry } = disk;
  const { dev, mirror, track } = record;
  if (o.migrating || (o.run !== 'running' && o.run !== 'suspended')) return nothing;
  if (graph.mirrorOpen && health.mirror.is === 'failed') return steps({ step: 'closeMirror', dev });
  if (!mayRetry) return nothing;
  if (!graph.mirrorOpen) return steps(openMirror(disk, null));
  if (track?.base === 'copying' && mirror.consistentAsOf === null && graph.tracking.length === 0)
    return surgery(beginPair(disk, primary));
  const why = "without error_policy='stop' only a mirror job can bring it up to date, and that copies everything";
  const copying = { bitmap: newBitmap(o, graph), base: 'copying' as const, why };
  return steps(
    { step: 'recordDisk', record: { ...record, mirror: { ...mirror, consistentAsOf: null }, track: copying } },
    ...graph.tracking.map(({ name }) => ({ step: 'untrack', node: primary.data, bitmap: name }) as const),
  );
}

/**
 * The job goes on until everything is copied, unless it failed, nobody wants it any more, or whoever began it did not come to the end of
 * that: the guest may have written meanwhile. null: everything is copied.
 */
export function planFirstCopy(o: Observation, disk: PresentDisk): DiskPlan | null {
  const { graph, record, health } = disk;
  const { pair, syncJob } = graph;
  const { kind } = record.intent;
  const isWanted = kind !== 'hold' && kind !== 'remove' && kind !== 'resync' && o.record.policy !== 'strict';
  const isWell = pair !== null && pair.epochs.length > 0 && health.mirror.is !== 'failed';
  if (!isWanted || !isWell || !(pair.inSync || pair.copying)) return steps(...giveUpCopy(record));
  if (pair.inSync) return null;
  return syncJob === null ? nothing : steps(...speedStep(disk, syncJob));
}

/** The device is the primary's again when the job ends. */
export function giveUpCopy({ dev }: DiskRecord): DiskStep[] {
  return [
    { step: 'dropPair', dev },
    { step: 'closeMirror', dev },
  ];
}
