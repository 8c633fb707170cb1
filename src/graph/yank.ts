import type { Monitor } from '../qmp/monitor.ts';

/**
 * Fails every request of these nodes, now and from now on, as if their connections had broken; false if QEMU can do that with none
 * of them. It waits for nothing, and is all that can be done while a storage hangs: whatever else changes the graph waits for its requests.
 */
export async function yank(monitor: Monitor, nodes: string[]): Promise<boolean> {
  const instances = (await monitor.execute('query-yank', {})).filter(
    ({ type, 'node-name': node }) => type === 'block-node' && node !== undefined && nodes.includes(node),
  );
  if (instances.length > 0) await monitor.execute('yank', { instances });
  return instances.length > 0;
}
