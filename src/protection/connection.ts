import { connectionPrefix } from '../graph/names.ts';
import { closeNodes } from '../graph/surgery.ts';
import type { DiskGraph } from '../graph/view.ts';
import { openSockets, socketsTo } from '../health/sockets.ts';
import type { Image } from '../domain/image.ts';
import { peerOf } from '../storage/image.ts';
import type { LiveDomain } from './live-domain.ts';

/**
 * QEMU's connection to the server of a mirror. When that is lost QEMU makes another one: for the request after one that failed (QEMU 7.2,
 * block/nbd.c, also with `reconnect-delay` 0), or without any failing (libiscsi). If nobody heard of a failure, nothing tells any more that
 * the server may have lost what it had acknowledged and not flushed. But a new connection has a new socket. The first one's is noted inside
 * QEMU, as the name of an idle node, when the mirror is opened.
 */

export const reconnectedText = 'its server was away, and may have lost what it had not flushed';

/**
 * Opens the mirror, and notes its connection: the one new socket that leads where the mirror's server listens. QEMU may open others
 * meanwhile, Ceph's client at any time. Where several lead there, or none does, because a target sent its initiator on, nothing is noted.
 */
export async function withConnectionNoted(
  live: LiveDomain,
  dev: string,
  image: Image,
  open: () => Promise<void>,
): Promise<void> {
  await forgetConnection(live, dev);
  const before = socketsOf(live);
  await open();
  const [socket, ...others] = connectionsTo(live, image).filter((one) => before?.includes(one) === false);
  if (socket === undefined || others.length > 0) return;
  const name = `${connectionPrefix(dev)}${socket}`;
  // A writable node of its own would have to take part in internal snapshots (block/snapshot.c), and can't.
  await live.monitor.execute('blockdev-add', { driver: 'null-co', 'node-name': name, size: 0, 'read-only': true });
}

/** Whether the mirror's connection is another than at first, or none. */
export async function hasReconnected(live: LiveDomain, dev: string): Promise<boolean> {
  const noted = await notes(live, dev);
  const open = socketsOf(live);
  return open !== null && noted.some((name) => !open.includes(name.slice(connectionPrefix(dev).length)));
}

/**
 * As `hasReconnected`, by a look at the graph and the sockets that QEMU had before it. Of a guest that runs, a mirror that has no connection
 * says nothing: its requests wait for one, or fail, which is told otherwise; and whatever pauses the guest would wait, too.
 */
export function seesReconnected(
  live: LiveDomain,
  { mirrorSocket }: DiskGraph,
  image: Image,
  sockets: string[] | null,
  { running }: { running: boolean },
): boolean {
  if (mirrorSocket === null || sockets?.includes(mirrorSocket) !== false) return false;
  return !running || connectionsTo(live, image).length > 0;
}

export async function forgetConnection(live: LiveDomain, dev: string): Promise<void> {
  await closeNodes(live.monitor, await notes(live, dev));
}

async function notes({ monitor }: LiveDomain, dev: string): Promise<string[]> {
  const { nodes } = await monitor.execute('x-debug-query-block-graph', {});
  return nodes.flatMap(({ name }) => (name.startsWith(connectionPrefix(dev)) ? name : []));
}

function connectionsTo({ pid }: LiveDomain, image: Image): string[] {
  const peer = peerOf(image);
  return peer === null || pid === null ? [] : socketsTo(pid, peer);
}

/** All that QEMU has open; null if that can't be told. */
export function socketsOf({ pid }: LiveDomain): string[] | null {
  return pid === null ? null : openSockets(pid);
}
