import { readFileSync } from 'node:fs';
import type { Peer } from '../storage/kind.ts';
import { descriptorsOf } from './descriptors.ts';

/** The sockets that a process has open, by what the kernel calls them; null if that can't be told. A new connection has another name. */
export function openSockets(pid: number): string[] | null {
  return descriptorsOf(pid)?.flatMap(({ target }) => /^socket:\[(\d+)\]$/.exec(target)?.[1] ?? []) ?? null;
}

/** Those of them that are connected to such a peer; none if that can't be told. */
export function socketsTo(pid: number, peer: Peer): string[] {
  const open = openSockets(pid) ?? [];
  const connected = peer === 'unix' ? connectedUnix(pid) : connectedTcp(pid, peer.port);
  return open.filter((socket) => connected.includes(socket));
}

/** Linux, net/ipv4/tcp_ipv4.c: get_tcp4_sock, net/ipv6/tcp_ipv6.c: get_tcp6_sock, include/net/tcp_states.h: TCP_ESTABLISHED. */
function connectedTcp(pid: number, port: number): string[] {
  const to = `:${port.toString(16).toUpperCase().padStart(4, '0')}`;
  return ['tcp', 'tcp6'].flatMap((table) =>
    rowsOf(pid, table).flatMap(([, , remote, state, , , , , , inode = '']) =>
      remote?.endsWith(to) === true && state === '01' ? inode : [],
    ),
  );
}

/** A client's end has no path, unlike what a server has accepted (Linux, net/unix/af_unix.c: unix_seq_show). */
function connectedUnix(pid: number): string[] {
  return rowsOf(pid, 'unix').flatMap(([, , , , type, state, inode = '', path]) =>
    type === '0001' && state === '03' && path === undefined ? inode : [],
  );
}

/** Of the network that the process is in. */
function rowsOf(pid: number, table: string): string[][] {
  try {
    const [, ...rows] = readFileSync(`/proc/${pid}/net/${table}`, 'utf8').split('\n');
    return rows.map((row) => row.trim().split(/\s+/));
  } catch {
    return [];
  }
}
