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
  /** Also what a server says that wants larger blocks, which QEMU asks for. */
  invalid: 22,
} as const;

/** The greeting ends with the server's flags; then come the export's size and flags, and zeroes unless both sides leave them out. */
const greeting = 'NBDMAGICIHAVEOPT';
const greetingBytes = 18;
const exportBytes = 10;
const sendFlush = 4;
const zeroes = 124;

/** Whether the first bytes of an export could be read; null if something else was said, or nothing by the deadline. */
export type NbdAnswer = { ok: true } | { ok: false; reason: string } | null;

interface Limit {
  deadlineMs: number;
  signal: AbortSignal;
}

/**
 * Reads the first 4096 bytes of an export over a connection of its own, which takes the server less than a millisecond. Returns when the
 * server has said anything, also that it refuses: only silence is a hang. Never waits on a thread.
 */
export async function nbdAnswer(source: NbdSource, limit: Limit): Promise<NbdAnswer> {
  const found = await hear(source, limit);
  return Buffer.isBuffer(found) ? readAnswer(found) : found;
}

/**
 * Whether the server takes flushes (NBD_FLAG_SEND_FLUSH): without, QEMU's client takes each for done (block/nbd.c: nbd_client_co_flush).
 * Why that can't be told, otherwise: a server that wants TLS does not say.
 */
export async function nbdOffersFlush(source: NbdSource, deadlineMs: number): Promise<boolean | string> {
  const said = await hear(source, { deadlineMs, signal: AbortSignal.timeout(deadlineMs) });
  if (said === null) return 'it did not answer in time';
  if (!Buffer.isBuffer(said)) return said.reason;
  if (!said.toString('latin1').startsWith(greeting) || said.length < greetingBytes + exportBytes)
    return 'it did not say';
  return (said.readUInt16BE(greetingBytes + exportBytes - 2) & sendFlush) !== 0;
}

/** What the server says; why it can't be reached; null if nobody is heard by the deadline. */
async function hear(
  { server, exportName }: NbdSource,
  { deadlineMs, signal }: Limit,
): Promise<Buffer | { ok: false; reason: string } | null> {
  const addresses = 'socket' in server ? [{ path: server.socket }] : await tcpAddresses(server, deadlineMs);
  let failure: { ok: false; reason: string } | null = null;
  for (const address of addresses) {
    const socket = createConnection(address);
    try {
      await once(socket, 'connect', { signal });
      return await converse(socket, exportName, signal);
    } catch (error) {
      failure = signal.aborted ? null : { ok: false, reason: errorText(error) };
    } finally {
      socket.destroy();
    }
  }
  return failure;
}

/** Names are looked up by another process: in this one a name server that hangs would take node's threads. */
async function tcpAddresses(
  { host, port }: { host: string; port: number },
  deadlineMs: number,
): Promise<{ host: string; port: number }[]> {
  if (isIP(host) !== 0) return [{ host, port }];
  const { stdout } = await runTool('getent', ['ahosts', host], { deadlineMs });
  const found = stdout.split('\n').flatMap((line) => line.split(/\s/)[0] || []);
  return [...new Set(found)].map((each) => ({ host: each, port }));
}

/** What the server has said when it ends, in whatever way: it may break the connection off because it was told too much. */
async function converse(socket: Socket, exportName: string, signal: AbortSignal): Promise<Buffer> {
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
  const abort = (): void => void socket.destroy();
  signal.addEventListener('abort', abort);
  await new Promise<void>((closed) => socket.on('error', () => undefined).on('close', () => closed()));
  signal.removeEventListener('abort', abort);
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
  if (errno === nbd.invalid) return null;
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
