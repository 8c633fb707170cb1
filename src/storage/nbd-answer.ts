import { once } from 'node:events';
import { createConnection, isIP, type Socket } from 'node:net';
import { getSystemErrorMap } from 'node:util';
import type { NbdSource } from '../domain/image.ts';
import { errorText } from '../errors.ts';
import { runTool } from './run-tool.ts';

/** Of the NBD project's doc/proto.md. */
const nbd = {
  optionMagic: 'IHAVEOPT',
  requestMagic: 0x25609513,
  replyMagic: 0x67446698,
  clientFlags: 3,
  exportName: 1,
  read: 0,
  disconnect: 2,
} as const;

/** The greeting ends with the server's flags; then come the export's size and flags, and zeroes unless both sides leave them out. */
const greetingBytes = 18;
const exportBytes = 10;
const zeroes = 124;

/** Whether the first bytes of an export could be read; null if something else was said, or nothing by the deadline. */
export type NbdAnswer = { ok: true } | { ok: false; reason: string } | null;

/**
 * Reads the first 4096 bytes of an export over a connection of its own, which takes the server less than a millisecond. Returns when the
 * server has said anything, also that it refuses: only silence is a hang. Never waits on a thread.
 */
export async function nbdAnswer(
  { server, exportName }: NbdSource,
  { deadlineMs, signal }: { deadlineMs: number; signal: AbortSignal },
): Promise<NbdAnswer> {
  const address = 'socket' in server ? { path: server.socket } : await tcpAddress(server, deadlineMs);
  if (address === null || signal.aborted) return null;
  const socket = createConnection(address);
  const abort = (): void => void socket.destroy();
  signal.addEventListener('abort', abort);
  try {
    return readAnswer(await converse(socket, exportName));
  } catch (error) {
    return { ok: false, reason: errorText(error) };
  } finally {
    signal.removeEventListener('abort', abort);
    socket.destroy();
  }
}

/** Names are looked up by another process: in this one a name server that hangs would take node's threads. */
async function tcpAddress(
  { host, port }: { host: string; port: number },
  deadlineMs: number,
): Promise<{ host: string; port: number } | null> {
  if (isIP(host) !== 0) return { host, port };
  const { stdout } = await runTool('getent', ['ahosts', host], { deadlineMs });
  const found = stdout.split(/\s/)[0] ?? '';
  return found === '' ? null : { host: found, port };
}

/** What the server has said when it ends. */
async function converse(socket: Socket, exportName: string): Promise<Buffer> {
  const name = Buffer.from(exportName);
  const option = Buffer.alloc(4 + 8 + 4 + 4);
  option.writeUInt32BE(nbd.clientFlags, 0);
  option.write(nbd.optionMagic, 4, 'latin1');
  option.writeUInt32BE(nbd.exportName, 12);
  option.writeUInt32BE(name.length, 16);
  socket.write(Buffer.concat([option, name, request(nbd.read, 4096)]));
  let heard = Buffer.alloc(0);
  socket.on('data', (chunk) => {
    heard = Buffer.concat([heard, chunk]);
    if (heard.length >= prefaceBytes(heard) + replyBytes && socket.writable) socket.end(request(nbd.disconnect, 0));
  });
  await once(socket, 'close');
  return heard;
}

/** What comes before the first reply. */
function prefaceBytes(heard: Buffer): number {
  if (heard.length < greetingBytes) return Infinity;
  const leavesOutZeroes = (heard.readUInt16BE(greetingBytes - 2) & 2) !== 0;
  return greetingBytes + exportBytes + (leavesOutZeroes ? 0 : zeroes);
}

/** The reply's magic and its error, one of Linux's. */
const replyBytes = 8;

function readAnswer(heard: Buffer): NbdAnswer {
  const reply = heard.subarray(prefaceBytes(heard));
  if (reply.length < replyBytes || reply.readUInt32BE(0) !== nbd.replyMagic) return null;
  const errno = reply.readUInt32BE(4);
  if (errno === 0) return { ok: true };
  const [, text = `error ${errno}`] = getSystemErrorMap().get(-errno) ?? [];
  return { ok: false, reason: `read failed: ${text}` };
}

function request(type: number, length: number): Buffer {
  const buffer = Buffer.alloc(28);
  buffer.writeUInt32BE(nbd.requestMagic, 0);
  buffer.writeUInt16BE(type, 6);
  buffer.writeUInt32BE(length, 24);
  return buffer;
}
