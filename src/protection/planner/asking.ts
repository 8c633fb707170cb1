import { diskNames } from '../../graph/names.ts';
import type { Side } from '../model.ts';
import type { Step } from '../steps.ts';
import { layerNames, topLayers, type PresentDisk } from './surgery.ts';

type Asking = Extract<Step, { step: 'probe' }>;

/** What comes of it is seen in the next look. */
export function probe({ record, graph }: PresentDisk, side: Side): Asking {
  const { dev, [side]: copy } = record;
  return { step: 'probe', dev, side, image: copy.image, node: storageNode(dev, graph, side) };
}

/** Of the only copy: whatever its server has lost, there is no other to go on with. */
export function probeStorage(disk: PresentDisk, side: Side): Asking {
  return { ...probe(disk, side), node: null };
}

/** Without an answer, nothing that follows is done. */
export function requireAnswer(disk: PresentDisk, side: Side): Step {
  return { ...probe(disk, side), step: 'requireAnswer' };
}

/** QEMU's own way to a copy's storage; null while it has none. A mirror that libvirt opened is under libvirt's names. */
function storageNode(dev: string, graph: PresentDisk['graph'], side: Side): string | null {
  const { mirrorOpen, primary, layout, pair } = graph;
  // QEMU lets nobody read the target of a mirror job.
  if (side === 'mirror' && pair?.engine === 'mirror') return null;
  if (side === 'mirror' && mirrorOpen) return diskNames(dev).mirrorStorage;
  if (primary === null || (side === 'mirror' && layout !== 'primary')) return null;
  return topLayers(layerNames(primary)).at(-1) ?? primary.data;
}
