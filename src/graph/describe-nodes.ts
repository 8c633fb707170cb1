import type { BlockDevice, BlockGraph, BlockNode } from '../qmp/commands.ts';
import { QmpError } from '../qmp/errors.ts';
import type { Monitor } from '../qmp/monitor.ts';

interface Seen {
  nodes: BlockNode[];
  /** The nodes of which QEMU could not tell, and until when it is not asked again; null if it could. */
  failed: { on: string; untilMs: number } | null;
}

/** Of each QEMU. */
const lastSeen = new WeakMap<Monitor, Seen>();

/** Each vain try holds up QEMU, until the storage's own time-out: so much longer it is then left in peace, at least a second. */
const peace = { factor: 5, leastMs: 1_000 };

/**
 * The nodes of the graph with their drivers and bitmaps. For that QEMU reads from Ceph RBD images (block/rbd.c:
 * qemu_rbd_get_specific_info), and tells nothing of any node if one can't be read. Then nodes are as they were last seen, and a
 * device's own node, the pair above all, as it is: what is left out is only what nobody has seen of nodes below.
 */
export async function describeNodes(monitor: Monitor, graph: BlockGraph, devices: BlockDevice[]): Promise<BlockNode[]> {
  const names = graph.nodes.flatMap(({ type, name }) => (type === 'block-driver' ? name : []));
  const on = [...names].sort().join(' ');
  const before = lastSeen.get(monitor) ?? { nodes: [], failed: null };
  const beganMs = Date.now();
  if (before.failed?.on === on && beganMs < before.failed.untilMs) return asLastSeen(names, before.nodes, devices);
  try {
    const nodes = await monitor.execute('query-named-block-nodes', { flat: true });
    lastSeen.set(monitor, { nodes, failed: null });
    return nodes;
  } catch (error) {
    if (!(error instanceof QmpError)) throw error;
    const nodes = asLastSeen(names, before.nodes, devices);
    const endedMs = Date.now();
    lastSeen.set(monitor, {
      nodes,
      failed: { on, untilMs: endedMs + Math.max(peace.leastMs, peace.factor * (endedMs - beganMs)) },
    });
    return nodes;
  }
}

function asLastSeen(names: string[], seen: BlockNode[], devices: BlockDevice[]): BlockNode[] {
  return names.map((name): BlockNode => {
    const now = devices.find(({ inserted }) => inserted?.['node-name'] === name)?.inserted;
    const then = seen.find((node) => node['node-name'] === name);
    return { drv: '', file: '', image: { 'virtual-size': 0 }, ...then, ...now, 'node-name': name };
  });
}
