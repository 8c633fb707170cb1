import { diskNames } from '../../graph/names.ts';
import type { Observation } from '../observation.ts';
import { nothing, steps, surgery, type DiskPlan } from './disk-plan.ts';
import { planSync, reopen } from './plan-sync.ts';
import { speedStep } from './sync-speed.ts';
import { buildLayers, closeForGood, dropLayers, pivot, startCopyStopped, type PresentDisk } from './surgery.ts';

/** Makes a primary again, from the mirror on which the guest runs, and moves back. */
export function planRebuild(o: Observation, disk: PresentDisk): DiskPlan {
  const { graph, record } = disk;
  const { dev, intent } = record;
  if (intent.kind !== 'rebuild') {
    return graph.otherJob === null ? surgery(dropLayers(disk)) : steps({ step: 'abortCopy', dev });
  }
  if (intent.original) return planBackToOriginal(o, disk);
  if (graph.layout === 'mirror') {
    if (graph.primary !== null) return steps({ step: 'closePrimary', dev, nodes: graph.primary.chain });
    return disk.mayRetry ? surgery(buildLayers(disk, intent.to)) : nothing;
  }
  return copyAndPivot(disk);
}

/** libvirt's copy job onto the new primary, over layers or on a mirror that libvirt itself opened, and its pivot. */
export function copyAndPivot(disk: PresentDisk): DiskPlan {
  const { graph, record, copyFailed, mayRetry } = disk;
  const { dev, intent } = record;
  if (intent.kind !== 'rebuild') return nothing;
  if (graph.otherJob !== null)
    return graph.otherJob.ready ? surgery(pivot(disk)) : steps(...speedStep(disk, graph.otherJob));
  if (copyFailed !== null) {
    return steps(
      { step: 'recordDisk', record: { ...record, intent: { kind: 'protect' } } },
      { step: 'note', event: 'rebuild-failed', disk: dev, detail: { why: copyFailed } },
    );
  }
  if (!mayRetry) return nothing;
  return disk.ioThread
    ? surgery(startCopyStopped(disk, intent.to))
    : steps({ step: 'startCopy', dev, to: intent.to, whileStopped: false });
}

/** The old primary is back: it only lacks what its bitmap on the mirror says. */
function planBackToOriginal(o: Observation, disk: PresentDisk): DiskPlan {
  const { graph, record, mayRetry } = disk;
  const { dev, layerNames } = record;
  if (graph.primary === null) {
    if (!mayRetry) return nothing;
    const { mirror } = diskNames(dev);
    const passes = graph.tracking.filter(({ name }) => name !== record.track?.bitmap);
    return reopen(disk, 'primary', (sealed) => [
      ...passes.map(({ name }) => ({ step: 'untrack', node: mirror, bitmap: name }) as const),
      { step: 'openPrimary', dev, image: record.primary.image, names: layerNames, sealed },
    ]);
  }
  return planSync(disk, {
    target: 'primary',
    opening: null,
    closeSteps: closeForGood(record, graph.primary),
    newBitmap: o,
    primary: graph.primary,
  });
}
