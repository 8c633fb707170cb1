import type { Monitor } from '../qmp/monitor.ts';
import { cancelSync } from '../sync/jobs.ts';
import { mirrorVerdict } from '../sync/verdict.ts';
import { closeNodes, openNodes } from './surgery.ts';

/** How much is read, from the beginning; no image is smaller. */
const readBytes = 65536;

/** The names of what a read needs inside QEMU for a moment. */
export interface ReadNames {
  readJob: string;
  /** The beginning of the node that is read. */
  slice: string;
  /** Where it goes. */
  sink: string;
}

/**
 * Reads through a node that QEMU has open, in use or not, and fails if that failed. What an agent that died has left is closed first.
 * Nothing is read where QEMU has I/O threads: QEMU 7.2 aborts when a node is added over one that is in use there (block.c:
 * bdrv_open_inherit), and the guest with it.
 */
export async function readNode(monitor: Monitor, names: ReadNames, node: string): Promise<void> {
  const { readJob: job, slice, sink } = names;
  await endRead(monitor, names);
  if ((await monitor.execute('query-iothreads', {})).length > 0) return;
  await openNodes(monitor, [
    { driver: 'raw', 'node-name': slice, file: node, offset: 0, size: readBytes, 'read-only': true },
    { driver: 'null-co', 'node-name': sink, size: readBytes },
  ]);
  try {
    await mirrorVerdict(monitor, `the read of ${node}`, { job, from: slice, to: sink, sync: 'full' });
  } finally {
    await closeNodes(monitor, [slice, sink]);
  }
}

/** Nothing of a read is left. */
export async function endRead(monitor: Monitor, { readJob, slice, sink }: ReadNames): Promise<void> {
  await cancelSync(monitor, readJob);
  await closeNodes(monitor, [slice, sink]);
}
