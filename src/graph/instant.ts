import { existsSync } from 'node:fs';
import { CdpError } from '../errors.ts';
import { QmpError } from '../qmp/errors.ts';
import type { Monitor } from '../qmp/monitor.ts';
import { handNewImage, type Recipient } from '../storage/descriptors.ts';
import { removeSocket, type Scratch } from '../storage/scratch.ts';
import type { Extent } from '../sync/compare.ts';
import { cancelSync } from '../sync/jobs.ts';
import { addBitmap } from './bitmaps.ts';
import { describeNodes } from './describe-nodes.ts';
import { bitmapGranularityBytes, epochStart, instantNames, type InstantSide } from './names.ts';
import { closeNodes, openNodes } from './surgery.ts';

/**
 * One instant of both copies under a running guest: for each copy a job that saves what is about to be overwritten into an overlay,
 * and an export of the overlay, which so shows the copy as it was. Both jobs start in one transaction, for which QEMU drains both
 * copies: no write is on one and not on the other.
 */

export interface InstantOf {
  dev: string;
  sizeBytes: number;
  /** The quorum's child of the primary, and its first node below filters: the bitmap's. */
  top: string;
  data: string;
  mirror: string;
}

/** An instant that can be read: by NBD, read-only, while the guest goes on. */
export interface Instant {
  socket: string;
  exports: { primary: string; mirror: string };
  /** What was written between the instant before and this one, by the primary's export; null if there was none before. */
  written: string | null;
}

const handDeadlineMs = 10_000;

/** Where an instant is kept, and whose QEMU takes it. */
export interface InstantIn {
  scratch: Scratch;
  recipient: Recipient;
}

/**
 * Takes an instant in the place of one that stands. `number` counts the instants of one verify from 0.
 * @throws CdpError `nbd-server-in-use` when somebody else has QEMU's only NBD server, such as libvirt for a pull backup;
 *   `iothreads-unsafe` before anything was done; `scratch-unusable`; as handNewImage.
 */
export async function takeInstant(monitor: Monitor, of: InstantOf, where: InstantIn, number: number): Promise<Instant> {
  const { dev, top, data, mirror } = of;
  await requireNoIothreads(monitor);
  const names = instantNames(dev);
  const bitmap = (n: number): string => `${names.bitmapPrefix}${n}`;
  const sides = [
    { node: top, side: names.primary },
    { node: mirror, side: names.mirror },
  ];
  const { scratch } = where;
  await dropInstant(monitor, dev, scratch, { keepBitmaps: number > 0 });
  await removeSocket(scratch);
  for (const { node, side } of sides) await openOverlay(monitor, side, node, of.sizeBytes, where);
  await startServer(monitor, scratch.socket);
  await monitor.execute('transaction', {
    actions: [
      ...(number === 0
        ? []
        : [{ type: 'block-dirty-bitmap-disable' as const, data: { node: data, name: bitmap(number - 1) } }]),
      {
        type: 'block-dirty-bitmap-add',
        data: { node: data, name: bitmap(number), granularity: bitmapGranularityBytes },
      },
      ...sides.map(({ node, side }) => ({
        type: 'blockdev-backup' as const,
        data: {
          'job-id': side.job,
          device: node,
          target: side.overlay,
          'filter-node-name': side.job,
          sync: 'none' as const,
        },
      })),
    ],
  });
  const written = number === 0 ? null : bitmap(number - 1);
  for (const { side, node } of sides) {
    await monitor.execute('block-export-add', {
      type: 'nbd',
      id: side.job,
      name: side.job,
      'node-name': side.overlay,
      writable: false,
      bitmaps: written !== null && node === top ? [written] : [],
    });
  }
  return {
    socket: scratch.socket,
    exports: { primary: names.primary.job, mirror: names.mirror.job },
    written,
  };
}

/** Takes away what there is of an instant, whoever made it: an agent that has died since, perhaps. The server is ours if it has our socket. */
export async function dropInstant(
  monitor: Monitor,
  dev: string,
  { socket }: Scratch,
  { keepBitmaps = false }: { keepBitmaps?: boolean } = {},
): Promise<void> {
  const { primary, mirror, bitmapPrefix, marks } = instantNames(dev);
  const graph = await monitor.execute('x-debug-query-block-graph', {});
  const nodes = await describeNodes(monitor, graph, await monitor.execute('query-block', {}));
  if (existsSync(socket)) await refusable(monitor.execute('nbd-server-stop', {}));
  for (const { job, overlay, overlayFile } of [primary, mirror]) {
    await cancelSync(monitor, job);
    await closeNodes(monitor, [overlay, overlayFile]);
  }
  await closeNodes(monitor, [marks]);
  if (keepBitmaps) return;
  for (const node of nodes) {
    for (const { name } of node['dirty-bitmaps'] ?? []) {
      if (name?.startsWith(bitmapPrefix) === true)
        await refusable(monitor.execute('block-dirty-bitmap-remove', { node: node['node-name'] ?? '', name }));
    }
  }
}

/** What may be gone already, or was as it was last seen: nothing that is left keeps a failover waiting. */
async function refusable(command: Promise<unknown>): Promise<void> {
  try {
    await command;
  } catch (error) {
    if (!(error instanceof QmpError)) throw error;
  }
}

/** Marks extents in the newest epoch of the pair, as if they had just been written: the next delta copies them onto the mirror. */
export async function markInEpoch(
  monitor: Monitor,
  { dev, pair, epochs, sizeBytes }: { dev: string; pair: string; epochs: string[]; sizeBytes: number },
  extents: Extent[],
): Promise<void> {
  const newest = [...epochs].sort((a, b) => epochStart(a) - epochStart(b)).at(-1);
  if (newest === undefined) throw new Error(`${dev} has no epoch yet`);
  const { marks } = instantNames(dev);
  await openNodes(monitor, [{ driver: 'null-co', 'node-name': marks, size: sizeBytes }]);
  await addBitmap(monitor, marks, marks, []);
  for (const { offset, length } of extents) {
    // One write in each of the bitmap's blocks; a null node keeps nothing.
    for (let at = offset; at < offset + length; at += bitmapGranularityBytes)
      await monitor.execute('human-monitor-command', { 'command-line': `qemu-io ${marks} "write ${at} 512"` });
  }
  await monitor.execute('block-dirty-bitmap-merge', {
    node: pair,
    target: newest,
    bitmaps: [{ node: marks, name: marks }],
  });
  await closeNodes(monitor, [marks]);
}

/** Nobody needs what is in an overlay after a crash, and reading it back is rare: the page cache does, also where there is no O_DIRECT. */
async function openOverlay(
  monitor: Monitor,
  { overlay, overlayFile }: InstantSide,
  backing: string,
  sizeBytes: number,
  { scratch: { folder }, recipient }: InstantIn,
): Promise<void> {
  const cache = { direct: false, 'no-flush': true };
  const { name, fdsetId } = await handNewImage(folder, sizeBytes, recipient, handDeadlineMs);
  try {
    await openNodes(monitor, [
      { driver: 'file', 'node-name': overlayFile, filename: name, 'auto-read-only': false, cache },
      { driver: 'qcow2', 'node-name': overlay, file: overlayFile, backing, cache },
    ]);
  } finally {
    await refusable(monitor.execute('remove-fd', { 'fdset-id': fdsetId }));
  }
}

/** QEMU 7.2 aborts when a node is added over one that is in use there (block.c: bdrv_open_inherit), and the guest with it. */
async function requireNoIothreads(monitor: Monitor): Promise<void> {
  if ((await monitor.execute('query-iothreads', {})).length === 0) return;
  throw new CdpError({
    code: 'iothreads-unsafe',
    message: 'the domain has I/O threads, under which a comparison could end QEMU, and the guest with it',
    hint: 'take <iothreads> out of the domain by virsh edit, or compare the images while it does not run: qemu-img compare',
  });
}

async function startServer(monitor: Monitor, socket: string): Promise<void> {
  try {
    await monitor.execute('nbd-server-start', { addr: { type: 'unix', data: { path: socket } } });
  } catch (error) {
    if (!(error instanceof QmpError)) throw error;
    if (!/already running/i.test(error.description)) {
      throw new CdpError({
        code: 'scratch-unusable',
        message: `QEMU can't make the socket '${socket}': ${error.description}`,
        hint: "name a folder by verify.scratch in which QEMU's user may make a socket",
        cause: error,
      });
    }
    throw new CdpError({
      code: 'nbd-server-in-use',
      message: "QEMU's NBD server is in use: by virsh backup-begin in pull mode, perhaps",
      hint: 'verify when that is over: virsh domjobinfo',
      cause: error,
    });
  }
}
