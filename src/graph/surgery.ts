import type { BlockdevOptions } from '../qmp/commands.ts';
import { QmpError } from '../qmp/errors.ts';
import type { Monitor } from '../qmp/monitor.ts';
import { diskNames, surgeryMark } from './names.ts';
import { NodeGraph } from './node-graph.ts';

/**
 * Changes of the block graph under a live device. What aborts or freezes QEMU can't be asked for here: a device is only given
 * a new root by `setRoot`, which stops the domain first and looks whether the node is already in use.
 */

/** EIO, as QEMU numbers it for blkdebug. */
const eio = 5;

export async function pause(monitor: Monitor): Promise<void> {
  await monitor.execute('stop', {});
}

/**
 * Pauses a guest that runs. A pause that is somebody else's must not become ours, and STOP flushes all nodes, which may be what
 * shows that a copy is damaged: either way the plan was made for another state of things.
 */
export async function pauseCleanly(monitor: Monitor): Promise<void> {
  if (!(await monitor.execute('query-status', {})).running) throw new Error('the guest was paused meanwhile');
  const seen: string[] = [];
  const unsubscribe = monitor.onEvent(({ event }) => {
    if (event === 'QUORUM_REPORT_BAD' || event === 'BLOCK_IO_ERROR') seen.push(event);
  });
  try {
    await pause(monitor);
    await monitor.execute('query-status', {});
  } finally {
    unsubscribe();
  }
  if (seen.length > 0) throw new Error('a copy failed while the guest was being paused');
}

/** Resumes by QMP: virDomainResume may wait behind other jobs of libvirt for many seconds. */
export async function resume(monitor: Monitor): Promise<void> {
  await monitor.execute('cont', {});
}

export async function markSurgery(monitor: Monitor): Promise<void> {
  await monitor.execute('blockdev-add', { driver: 'null-co', 'node-name': surgeryMark, size: 0 });
}

export async function unmarkSurgery(monitor: Monitor): Promise<void> {
  await monitor.execute('blockdev-del', { 'node-name': surgeryMark });
}

/**
 * A node on which every I/O fails with EIO, so that a stranger's resume in mid-surgery only pauses the guest again. The rule
 * has no iotype: with one, write-zeroes and discards would succeed. One failing write makes later flushes fail as well.
 */
export async function buildPark(monitor: Monitor, dev: string, sizeBytes: number): Promise<void> {
  const { park, parkNull, nothing } = diskNames(dev);
  await openNodes(monitor, [
    { driver: 'null-co', 'node-name': nothing, size: sizeBytes },
    {
      driver: 'blkdebug',
      'node-name': park,
      image: { driver: 'null-co', 'node-name': parkNull, size: sizeBytes },
      discard: 'unmap',
      'inject-error': [{ event: 'none', errno: eio }],
    },
  ]);
  await monitor.execute('human-monitor-command', { 'command-line': `qemu-io ${park} "write 0 512"` });
}

/** Stops a domain again that somebody resumed in mid-surgery. */
export async function staysPaused(monitor: Monitor): Promise<void> {
  if ((await monitor.execute('query-status', {})).running) await pause(monitor);
}

/**
 * Makes `node` the device's root in place of `from`; nothing is done if it is already. A domain that somebody resumed meanwhile
 * is stopped again. Setting a node that is attached to a device aborts QEMU, and leaving another node than the plan was made
 * for could lose what was written to it (a stranger's snapshot in between), therefore the look.
 */
export async function setRoot(monitor: Monitor, qdev: string, from: string, node: string): Promise<void> {
  await staysPaused(monitor);
  const graph = new NodeGraph(await monitor.execute('x-debug-query-block-graph', {}));
  const root = graph.rootOf(qdev);
  if (root === node) return;
  if (root !== from) throw new Error(`${qdev} is on ${root ?? 'no node'} and not, as planned, on ${from}`);
  const [user] = graph.usersOf(node);
  if (user !== undefined) throw new Error(`node ${node} is already attached to ${user || 'a block job'}`);
  await monitor.execute('qom-set', { path: qdev, property: 'drive', value: node });
}

/**
 * Adds nodes that belong together, lowest first; none is left behind if one can't be opened. An agent that died in the middle of
 * opening or closing them may have left some, which are closed first: what is in use QEMU does not let go.
 */
export async function openNodes(monitor: Monitor, nodes: BlockdevOptions[]): Promise<void> {
  try {
    await addNodes(monitor, nodes);
  } catch (error) {
    if (!(error instanceof QmpError && isDuplicateNode(error))) throw error;
    await closeNodes(monitor, [...nodes].reverse().flatMap(namesIn));
    await addNodes(monitor, nodes);
  }
}

/** A node and those that are opened along with it: as nodes of their own they would outlast it. */
function namesIn(node: BlockdevOptions): string[] {
  const children = Object.values(node).filter(isNode);
  return [node['node-name'], ...children.flatMap(namesIn)];
}

function isNode(value: unknown): value is BlockdevOptions {
  return typeof value === 'object' && value !== null && 'node-name' in value;
}

async function addNodes(monitor: Monitor, nodes: BlockdevOptions[]): Promise<void> {
  const opened: string[] = [];
  try {
    for (const node of nodes) {
      await addNode(monitor, node);
      opened.unshift(node['node-name']);
    }
  } catch (error) {
    await closeNodes(monitor, opened);
    throw error;
  }
}

/** Deletes nodes, topmost first; one that is gone already is no error. */
export async function closeNodes(monitor: Monitor, names: string[]): Promise<void> {
  for (const name of names) {
    try {
      await monitor.execute('blockdev-del', { 'node-name': name });
    } catch (error) {
      if (!(error instanceof QmpError && isMissingNode(error))) throw error;
    }
  }
}

/** Raw layers under libvirt's names over the open mirror: libvirt's own block copy then works on the device's real root. */
export async function buildLayers(monitor: Monitor, dev: string, names: string[]): Promise<void> {
  let below = diskNames(dev).mirror;
  for (const name of [...names].reverse()) {
    await addNode(monitor, { driver: 'raw', 'node-name': name, file: below });
    below = name;
  }
}

async function addNode(monitor: Monitor, options: BlockdevOptions): Promise<void> {
  await monitor.execute('blockdev-add', options);
}

function isDuplicateNode(error: QmpError): boolean {
  return /Duplicate nodes with node-name/i.test(error.description);
}

function isMissingNode(error: QmpError): boolean {
  return /Failed to find node|Cannot find device|not found/i.test(error.description);
}
