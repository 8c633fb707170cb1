import { connectionPrefix } from '../graph/names.ts';
import { closeNodes } from '../graph/surgery.ts';
import { openSockets } from '../health/sockets.ts';
import { qemuPid } from '../libvirt/pid-file.ts';
import type { LiveDomain } from './live-domain.ts';

/**
 * QEMU's connection to the server of a mirror. When that is lost one request fails, and the next makes another connection (QEMU 7.2,
 * block/nbd.c, also with `reconnect-delay` 0): if nobody heard of the failure, nothing tells any more that the server may have lost what it had
 * acknowledged and not flushed. But a new connection has a new socket. The first one's is noted inside QEMU, as the name of an idle node, when
 * the mirror is opened.
 */

/** Opens the mirror, and notes its connection. Storage that has none, or several, has nothing noted. */
export async function withConnectionNoted(live: LiveDomain, dev: string, open: () => Promise<void>): Promise<void> {
  await forgetConnection(live, dev);
  const before = socketsOf(live);
  await open();
  const [socket, ...others] = (socketsOf(live) ?? []).filter((one) => before?.includes(one) === false);
  if (socket === undefined || others.length > 0) return;
  const name = `${connectionPrefix(dev)}${socket}`;
  // A writable node of its own would have to take part in internal snapshots (block/snapshot.c), and can't.
  await live.monitor.execute('blockdev-add', { driver: 'null-co', 'node-name': name, size: 0, 'read-only': true });
}

/** Whether the mirror's connection is another than at first. */
export async function hasReconnected(live: LiveDomain, dev: string): Promise<boolean> {
  const noted = await notes(live, dev);
  const open = socketsOf(live);
  return open !== null && noted.some((name) => !open.includes(name.slice(connectionPrefix(dev).length)));
}

export async function forgetConnection(live: LiveDomain, dev: string): Promise<void> {
  await closeNodes(live.monitor, await notes(live, dev));
}

async function notes({ monitor }: LiveDomain, dev: string): Promise<string[]> {
  const { nodes } = await monitor.execute('x-debug-query-block-graph', {});
  return nodes.flatMap(({ name }) => (name.startsWith(connectionPrefix(dev)) ? name : []));
}

function socketsOf({ ref }: LiveDomain): string[] | null {
  const pid = qemuPid(ref.name);
  return pid === null ? null : openSockets(pid);
}
