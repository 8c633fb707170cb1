import { CdpError } from '../errors.ts';
import { runTool, type ToolOutcome } from '../storage/run-tool.ts';

/** A part of a disk; bytes. */
export interface Extent {
  offset: number;
  length: number;
}

/** Two exports of one NBD server, on a unix socket. */
export interface ExportPair {
  socket: string;
  exports: { primary: string; mirror: string };
}

export interface CompareOptions {
  /** Each copy is read no faster; 0 is unlimited. */
  maxBytesPerS: number;
  /** No more blocks that differ are looked for. */
  maxBlocks: number;
  /** Bytes that were compared since the last call. */
  progress: (bytes: number) => void;
  signal: AbortSignal;
}

/** What differs is told in blocks of this size, which is also that of our bitmaps' bits. */
export const comparedBlockBytes = 65536;

/** One process compares so much, and then there is progress to be told. */
const maxWindowBytes = 256 * 1024 * 1024;

/** A window that takes so much longer than its limit wants is not answered any more. */
const windowDeadlineMs = 120_000;

/** The extents of `areas` in which two images differ, in order; `complete` unless there were too many to go on. */
export async function compareExports(
  pair: ExportPair,
  areas: Extent[],
  options: CompareOptions,
): Promise<{ differing: Extent[]; complete: boolean }> {
  const differing: Extent[] = [];
  let blocks = 0;
  for (const area of areas) {
    const end = area.offset + area.length;
    for (let at = area.offset; at < end;) {
      const window = { offset: at, length: Math.min(windowBytes(options.maxBytesPerS), end - at) };
      const found = await firstDifference(pair, window, options);
      if (found === null) at += window.length;
      else {
        const offset = found - (found % comparedBlockBytes);
        const length = Math.min(comparedBlockBytes, end - offset);
        append(differing, { offset, length });
        at = offset + length;
        blocks += 1;
        if (blocks === options.maxBlocks) return { differing, complete: false };
      }
      options.progress(at - window.offset);
    }
  }
  return { differing, complete: true };
}

/** The extents in which a bitmap of an export is dirty. */
export async function dirtyExtents(
  { socket, exports }: ExportPair,
  bitmap: string,
  signal: AbortSignal,
): Promise<Extent[]> {
  const image = { ...nbd(socket, exports.primary), 'x-dirty-bitmap': `qemu:dirty-bitmap:${bitmap}` };
  const outcome = await tool(['map', '--output=json', `json:${JSON.stringify(image)}`], windowDeadlineMs, signal);
  if (outcome.status !== 0) throw unreadable(outcome, null);
  // qemu-img shows NBD_STATE_DIRTY as what has the same bit among the states of allocation (docs/interop/nbd.txt): a hole.
  return (JSON.parse(outcome.stdout) as { start: number; length: number; data: boolean }[])
    .filter(({ data }) => !data)
    .map(({ start, length }) => ({ offset: start, length }));
}

/** The extents of `a` that nothing of `b` touches, and those that something does. */
export function splitBy(a: Extent[], b: Extent[]): { apart: Extent[]; touched: Extent[] } {
  const apart: Extent[] = [];
  const touched: Extent[] = [];
  for (const { offset, length } of a) {
    for (let at = offset; at < offset + length; at += comparedBlockBytes) {
      const block = { offset: at, length: Math.min(comparedBlockBytes, offset + length - at) };
      const touches = b.some((one) => one.offset < at + block.length && at < one.offset + one.length);
      append(touches ? touched : apart, block);
    }
  }
  return { apart, touched };
}

export function sumOf(extents: Extent[]): number {
  return extents.reduce((sum, { length }) => sum + length, 0);
}

/** The extents of both, in order. Together they overlap nowhere. */
export function joined(a: Extent[], b: Extent[]): Extent[] {
  const all: Extent[] = [];
  for (const extent of [...a, ...b].sort((one, other) => one.offset - other.offset)) append(all, { ...extent });
  return all;
}

function append(extents: Extent[], { offset, length }: Extent): void {
  const last = extents.at(-1);
  if (last !== undefined && last.offset + last.length === offset) last.length += length;
  else extents.push({ offset, length });
}

/** About two seconds' worth, so that the limit's own start and end matter little. */
function windowBytes(maxBytesPerS: number): number {
  if (maxBytesPerS === 0) return maxWindowBytes;
  const wanted = Math.min(maxWindowBytes, maxBytesPerS * 2);
  return Math.max(comparedBlockBytes, wanted - (wanted % comparedBlockBytes));
}

/** Offset of the first sector that differs; null if none does. */
async function firstDifference(
  { socket, exports }: ExportPair,
  window: Extent,
  { maxBytesPerS, signal }: CompareOptions,
): Promise<number | null> {
  const image = (name: string): string => {
    const file = nbd(socket, name);
    const limited = { driver: 'throttle', 'throttle-group': name, file };
    return `json:${JSON.stringify({
      driver: 'raw',
      offset: window.offset,
      size: window.length,
      file: maxBytesPerS === 0 ? file : limited,
    })}`;
  };
  const limits = Object.values(exports).flatMap((id) => [
    '--object',
    JSON.stringify({ 'qom-type': 'throttle-group', id, limits: { 'bps-read': maxBytesPerS } }),
  ]);
  const deadlineMs = windowDeadlineMs + (maxBytesPerS === 0 ? 0 : (window.length / maxBytesPerS) * 2000);
  const outcome = await tool(
    ['compare', ...(maxBytesPerS === 0 ? [] : limits), image(exports.primary), image(exports.mirror)],
    deadlineMs,
    signal,
  );
  // qemu-img compare: 0 identical, 1 different, more is an error.
  if (outcome.status === 0) return null;
  const offset = /mismatch at offset (\d+)/.exec(outcome.stdout)?.[1];
  if (outcome.status !== 1 || offset === undefined) throw unreadable(outcome, exports);
  return window.offset + Number(offset);
}

function nbd(socket: string, name: string): Record<string, unknown> {
  return { driver: 'nbd', server: { type: 'unix', path: socket }, export: name };
}

async function tool(args: string[], deadlineMs: number, signal: AbortSignal): Promise<ToolOutcome> {
  signal.throwIfAborted();
  const outcome = await runTool('qemu-img', args, { deadlineMs });
  signal.throwIfAborted();
  return outcome;
}

/** qemu-img names the image whose reading failed, first of all by its export. */
function unreadable({ stderr, deadlinePassed }: ToolOutcome, exports: ExportPair['exports'] | null): CdpError {
  const side = exports === null ? 'copy' : stderr.includes(exports.mirror) ? 'mirror' : 'primary';
  const why = deadlinePassed ? 'it did not answer in time' : stderr.replaceAll(/json:\{.*\}+/g, 'it').trim();
  return new CdpError({
    code: side === 'primary' ? 'primary-unreadable' : 'mirror-unreadable',
    message: `the ${side} could not be read: ${why}`,
    hint:
      side === 'primary'
        ? 'if it is damaged: virt-cdp failover moves the guest onto the mirror'
        : 'see whether its storage is in order',
  });
}
