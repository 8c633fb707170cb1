import { connectionPrefix } from '../graph/names.ts';
import { closeNodes } from '../graph/surgery.ts';
import type { DiskGraph } from '../graph/view.ts';
import { openSockets, socketsTo } from '../health/sockets.ts';
import type { Image } from '../domain/image.ts';
import { peerOf } from '../storage/image.ts';
import type { Peer } from '../storage/kind.ts';
import type { LiveDomain } from './live-domain.ts';

/**
 * The connections on the way to the server of a mirror: QEMU's own, or QEMU's to a relay and that one's. One that is lost is made anew: by
 * QEMU for the request after one that failed (QEMU 7.2, block/nbd.c, also with `reconnect-delay` 0), or without any failing (libiscsi). If
 * nobody heard of a failure, nothing tells any more that the server may have lost what it had acknowledged and not flushed. But a new
 * connection has a new socket. The first ones' are noted inside QEMU, as the names of idle nodes, when the mirror is opened.
 */

export const reconnectedText = 'its server was away, and may have lost what it had not flushed';

/** A process on the way, and where its one connection leads. */
interface Hop {
  pid: number;
  peer: Peer;
}

/**
 * Opens the mirror, and notes its connections: of each process on the way the one new socket that leads where it should. QEMU may open others
 * meanwhile, Ceph's client at any time. Where several lead there, or none does, because a target sent its initiator on, nothing is noted.
 */
export async function withConnectionNoted(
  live: LiveDomain,
  dev: string,
  image: Image,
  open: () => Promise<void>,
): Promise<void> {
  await forgetConnection(live, dev);
  const before = socketsOf(live, []) ?? [];
  await open();
  for (const hop of hopsTo(live, dev, image)) {
    const [socket, ...others] = socketsTo(hop.pid, hop.peer).filter((one) => !before.includes(one));
    if (socket === undefined || others.length > 0) continue;
    const name = `${connectionPrefix(dev)}${socket}`;
    // A writable node of its own would have to take part in internal snapshots (block/snapshot.c), and can't.
    await live.monitor.execute('blockdev-add', { driver: 'null-co', 'node-name': name, size: 0, 'read-only': true });
  }
}

/** Whether one of the mirror's connections is another than at first, or none. */
export async function hasReconnected(live: LiveDomain, dev: string): Promise<boolean> {
  const noted = await notes(live, dev);
  const open = socketsOf(live, [dev]);
  return open !== null && noted.some((name) => !open.includes(name.slice(connectionPrefix(dev).length)));
}

/**
 * As `hasReconnected`, by a look at the graph and the sockets that were open before it. Of a guest that runs, a mirror that has no connection
 * says nothing: its requests wait for one, or fail, which is told otherwise; and whatever pauses the guest would wait, too. But nothing waits
 * for a relay that is gone while QEMU has not noticed.
 */
export function seesReconnected(
  live: LiveDomain,
  dev: string,
  { mirrorSockets }: DiskGraph,
  image: Image,
  open: string[] | null,
  { running }: { running: boolean },
): boolean {
  if (open === null || mirrorSockets.every((socket) => open.includes(socket))) return false;
  const isWithoutRelay = mirrorSockets.some((socket) => open.includes(socket)) && live.relayPid(dev) === null;
  const last = hopsTo(live, dev, image).at(-1);
  return !running || isWithoutRelay || (last !== undefined && socketsTo(last.pid, last.peer).length > 0);
}

export async function forgetConnection(live: LiveDomain, dev: string): Promise<void> {
  await closeNodes(live.monitor, await notes(live, dev));
}

async function notes({ monitor }: LiveDomain, dev: string): Promise<string[]> {
  const { nodes } = await monitor.execute('x-debug-query-block-graph', {});
  return nodes.flatMap(({ name }) => (name.startsWith(connectionPrefix(dev)) ? name : []));
}

function hopsTo(live: LiveDomain, dev: string, image: Image): Hop[] {
  const peer = peerOf(image);
  const { pid } = live;
  if (peer === null || pid === null) return [];
  const relay = live.relayPid(dev);
  return relay === null
    ? [{ pid, peer }]
    : [
        { pid, peer: 'unix' },
        { pid: relay, peer },
      ];
}

/**
 * All that QEMU and the relays of these disks have open; null if that can't be told of QEMU. It comes last: while it is there, no relay has
 * ended because of it.
 */
export function socketsOf(live: LiveDomain, devs: string[]): string[] | null {
  const relays = devs.flatMap((dev) => live.relayPid(dev) ?? []).flatMap((relay) => openSockets(relay) ?? []);
  const own = live.pid === null ? null : openSockets(live.pid);
  return own === null ? null : [...relays, ...own];
}
