import { epochStart } from '../../src/graph/names.ts';
import type { DiskGraph } from '../../src/graph/view.ts';
import type { DiskObservation } from '../../src/protection/observation.ts';
import type { SimulatedMemory } from './simulated-memory.ts';

/** As observe.ts does it, with `aged` in the place of a clock. `flushes`: of the guest. */
export function epochsOf(
  graph: DiskGraph | null,
  memory: SimulatedMemory,
  aged: ReadonlySet<string>,
  flushes: number,
): DiskObservation['epochs'] {
  if (graph?.pair == null) return { rotate: false, flushed: [] };
  if (graph.pair.engine === 'mirror') return { rotate: graph.pair.epochs.length === 0, flushed: [] };
  const ordered = [...graph.pair.epochs].sort((a, b) => epochStart(a) - epochStart(b));
  const newest = ordered.at(-1);
  if (newest === undefined) return { rotate: true, flushed: [] };
  if (ordered.length === 1) return { rotate: aged.has(newest), flushed: [] };
  const since = memory.epochFlushes.get(newest) ?? flushes;
  memory.epochFlushes.set(newest, since);
  return { rotate: false, flushed: flushes >= since + 2 ? ordered.slice(0, -1) : [] };
}
