import { diskNames, trackedSize } from '../../graph/names.ts';
import type { PrimaryNodes, TrackBitmap } from '../../graph/view.ts';
import type { Side } from '../model.ts';
import type { Observation } from '../observation.ts';
import { nothing, steps, surgery, type DiskPlan } from './disk-plan.ts';
import { speedStep } from './sync-speed.ts';
import { arm, newBitmap, park, passBitmap, type DiskStep, type PresentDisk } from './surgery.ts';

/** Below this much left to copy, the last delta is short enough to be made in the pause. */
const finalDeltaBytes = 1024 * 1024;

/** A guest that writes faster than the copies converge is armed all the same after so many passes: the pause is longer then. */
const maxDeltaPasses = 8;

/** Where a sync leads, and how its target is opened and closed. */
export interface SyncRoute {
  target: Side;
  /** How it is opened; null: it is open. */
  opening: ((sealed: string | null) => DiskStep) | null;
  closeSteps: DiskStep[];
  newBitmap: Observation;
  primary: PrimaryNodes;
}

/**
 * Brings the stale copy up to date from the current one, never the other way, and arms when little is left. The tracking bitmap
 * forgets nothing until then: a pass works on a bitmap of its own, because a backup job clears what it copied without a
 * flush of its target (QEMU 7.2, tried), whose server can still lose it.
 */
export function planSync(disk: PresentDisk, route: SyncRoute): DiskPlan {
  const { graph, record, health, mayRetry } = disk;
  const { dev, track } = record;
  const { target, primary } = route;
  if (route.newBitmap.migrating) return nothing;
  if (graph.syncJob !== null) {
    const { type, ready, status, error } = graph.syncJob;
    if (status === 'concluded') {
      const whole = track?.base === 'copying' && error === undefined && health[target].is !== 'failed';
      return steps(
        ...(whole
          ? [
              ...park(graph, dev),
              { step: 'flush' as const, dev, node: diskNames(dev).mirror },
              { step: 'recordDisk' as const, record: { ...record, track: { ...track, base: 'whole' as const } } },
            ]
          : []),
        { step: 'dismissSync', dev },
      );
    }
    if (!(type === 'mirror' && ready)) return steps(...speedStep(disk, graph.syncJob));
    return track === null
      ? steps({ step: 'cancelSync', dev })
      : steps(
          { step: 'endFullSync', dev },
          // libiscsi makes another connection by itself, and what the server had not flushed before is in no bitmap.
          ...(target === 'mirror' ? [{ step: 'requireConnected' as const, dev }] : []),
          { step: 'recordDisk', record: { ...record, track: { ...track, base: 'whole' } } },
        );
  }
  const { opening } = route;
  if (opening === null && health[target].is === 'failed') return steps(...route.closeSteps);
  if (!mayRetry) return nothing;
  const mirror = diskNames(dev).mirror;
  const [from, fromData, to] =
    target === 'mirror' ? [primary.top, primary.data, mirror] : [mirror, mirror, primary.top];
  const source = target === 'mirror' ? 'primary' : 'mirror';
  const untrack = ({ on, name }: TrackBitmap): DiskStep => ({
    step: 'untrack',
    node: on === 'primary' ? primary.data : mirror,
    bitmap: name,
  });
  const find = (bitmap: string | null): TrackBitmap | undefined =>
    graph.tracking.find(({ on, name }) => on === source && name === bitmap);
  // What a grown disk has at its end no bitmap has recorded.
  const resized = track !== null && (trackedSize(track.bitmap) ?? graph.sizeBytes) !== graph.sizeBytes;
  const tracked = resized ? undefined : find(track && track.bitmap);
  const pass = find(track && passBitmap(track.bitmap));
  const leftover = graph.tracking.filter((bitmap) => bitmap !== tracked && bitmap !== pass).map(untrack);
  const mixture = { ...record, [target]: { ...record[target], consistentAsOf: null } };

  // What an earlier pass copied may have been lost with the connection: a copy that is opened again gets everything again.
  if (opening !== null)
    return reopen(disk, target, (sealed) => [...(pass === undefined ? [] : [untrack(pass)]), opening(sealed)]);
  if (track === null || tracked === undefined || track.base === 'copying') {
    const bitmap = newBitmap(route.newBitmap, graph);
    const why = resized
      ? 'the disk had another size when it fell behind'
      : track === null
        ? 'nothing has recorded what it lacks'
        : track.base === 'copying'
          ? (track.why ?? 'an earlier copy was not finished')
          : 'what recorded its lack is gone';
    return steps(
      ...graph.tracking.map(untrack),
      { step: 'recordDisk', record: { ...mixture, track: { bitmap, base: 'copying', why } } },
      { step: 'track', dev, node: fromData, bitmap, merged: [] },
      { step: 'startFullSync', dev, from, to },
    );
  }
  const bitmap = passBitmap(track.bitmap);
  if (pass === undefined) {
    return steps(
      ...leftover,
      ...(record[target].consistentAsOf === null ? [] : [{ step: 'recordDisk' as const, record: mixture }]),
      { step: 'track', dev, node: fromData, bitmap, merged: [{ node: fromData, name: track.bitmap }] },
    );
  }
  if (pass.dirtyBytes > finalDeltaBytes && disk.deltaPasses < maxDeltaPasses) {
    return steps({ step: 'startDelta', dev, from: fromData, to, bitmap });
  }
  return surgery(arm(disk, primary, track.bitmap));
}

/**
 * Opens a stale copy again. If it is to be brought up to date by a delta, or is called whole, it must be as it was when it was closed: what
 * somebody wrote to it since no bitmap knows, and it gets everything.
 */
export function reopen(
  { record, touched }: PresentDisk,
  side: Side,
  opening: (sealed: string | null) => DiskStep[],
): DiskPlan {
  const { [side]: copy, track } = record;
  const byDelta = track?.base === 'whole';
  if (!byDelta && copy.consistentAsOf === null) return steps(...opening(null));
  if (!touched.includes(side)) return steps(...opening(copy.sealed ?? null));
  const mixture = { ...copy, consistentAsOf: null };
  return steps({ step: 'recordDisk', record: { ...record, track: byDelta ? null : track, [side]: mixture } });
}
