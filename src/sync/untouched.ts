import type { Monitor } from '../qmp/monitor.ts';

/**
 * Fails if the device did anything since QEMU started that may have changed its disk, or if that can't be known. A failed write
 * that reached the disk all the same shows only in the highest offset that the node wrote. A discard of virtio-blk shows
 * nowhere; firmware makes none, so this is asked right after a start.
 */
export async function requireNoWrites(monitor: Monitor, qdev: string, node: string): Promise<void> {
  const device = (await monitor.execute('query-blockstats', {})).find((candidate) => candidate.qdev === qdev);
  const nodes = await monitor.execute('query-blockstats', { 'query-nodes': true });
  const written = nodes.find((candidate) => candidate['node-name'] === node)?.stats.wr_highest_offset;
  if (device === undefined || written === undefined) throw new Error(`QEMU has no statistics of ${qdev} and ${node}`);
  if (written !== 0) throw new Error(`the guest has written already, up to byte ${written}`);
  for (const [name, count] of Object.entries(device.stats)) {
    if (counter.test(name) && count !== 0) throw new Error(`the guest has written already: ${name} is ${count}`);
  }
}

/** Of qapi/block-core.json: BlockDeviceStats, what stays 0 as long as nothing is written, flushed or discarded, or fails to be. */
const counter = /^(failed_|invalid_)?(wr|unmap|flush)_operations$/;
