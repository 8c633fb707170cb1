import { z } from 'zod';
import type { Image, Source } from '../domain/image.ts';
import { CdpError } from '../errors.ts';
import { ImageTool } from './image-tool.ts';
import { imageName, kindOf } from './image.ts';
import { secretId, type Access } from './kind.ts';
import { nbdAnswer } from './nbd-answer.ts';
import type { ImageOpener } from './opener.ts';
import { isSecretProblem } from './secrets.ts';
import { runTool, toolWords, type ToolOutcome } from './run-tool.ts';

export interface Deadline {
  /** How long all of it may take, in milliseconds. */
  deadlineMs: number;
}

export interface LookOptions extends Deadline {
  opener: ImageOpener;
}

export interface Measured {
  virtualSizeBytes: number;
  /**
   * False if the whole image was seen to read as zeros. True if it has other bytes, and also if the deadline passed
   * before all of it was read: emptiness is then not proven. What storage reports as unallocated takes no time.
   */
  holdsData: boolean;
  /** What the header looks like: a raw image may hold a qcow2 one. Null if it looks like a format but is a broken one. */
  detectedFormat: string | null;
  /** It is incomplete without another file: a backing file, or an external data file. */
  backing: boolean;
  /** That other file is a data file. */
  dataFile: boolean;
  /** It can be opened past the page cache (O_DIRECT). */
  direct: boolean;
}

const imageInfo = z.object({
  'virtual-size': z.number().int().nonnegative(),
  format: z.string(),
  'backing-filename': z.string().optional(),
  'format-specific': z.object({ data: z.object({ 'data-file': z.string().optional() }).optional() }).optional(),
});

/**
 * Looks at an image from outside, also while a domain has it open.
 * @throws CdpError `mirror-missing` if there is no such image, `storage-timeout`, `image-unusable`, `tool-missing`, and as
 *   ImageOpener.prepare.
 */
export async function measureImage(image: Image, { deadlineMs, opener }: LookOptions): Promise<Measured> {
  const left = budget(deadlineMs);
  const tool = await ImageTool.for(image, opener);
  const { info, direct } = await readInfo(tool, left, deadlineMs);
  const dataFile = info['format-specific']?.data?.['data-file'] !== undefined;
  // Before the search for data, which takes what time there is.
  const detectedFormat = image.format === 'raw' ? await detectFormat(tool, left, deadlineMs) : image.format;
  return {
    virtualSizeBytes: info['virtual-size'],
    holdsData: await holdsData(tool, info['virtual-size'], direct, left, deadlineMs),
    detectedFormat,
    backing: info['backing-filename'] !== undefined || dataFile,
    dataFile,
    direct,
  };
}

/**
 * The size of the disk that an image is, in bytes, also while a domain has it open.
 * @throws CdpError as measureImage.
 */
export async function imageSize(image: Image, { deadlineMs, opener }: LookOptions): Promise<number> {
  const left = budget(deadlineMs);
  const tool = await ImageTool.for(image, opener);
  return (await readInfo(tool, left, deadlineMs)).info['virtual-size'];
}

/** `direct`: it can be opened past the page cache. */
async function readInfo(
  tool: ImageTool,
  left: () => number,
  deadlineMs: number,
): Promise<{ info: z.infer<typeof imageInfo>; direct: boolean }> {
  let direct = true;
  let outcome = await infoOf(tool, tool.filename(), left());
  if (refusesDirect(outcome)) {
    direct = false;
    outcome = await infoOf(tool, tool.filename({ direct }), left());
  }
  return { info: parseInfo(tool.image, 'measured', outcome, deadlineMs), direct };
}

function infoOf(tool: ImageTool, filename: string, deadlineMs: number): Promise<ToolOutcome> {
  return tool.qemuImg('info', ['--force-share', '--output=json', filename], deadlineMs);
}

function parseInfo(image: Image, verb: string, outcome: ToolOutcome, deadlineMs: number): z.infer<typeof imageInfo> {
  if (outcome.status !== 0) throw failure(image, verb, outcome, deadlineMs);
  return imageInfo.parse(JSON.parse(outcome.stdout));
}

/** Without a format's name QEMU looks at the header. A guest may have written anything there, so no answer is one too. */
async function detectFormat(tool: ImageTool, left: () => number, deadlineMs: number): Promise<string | null> {
  const { image, access } = tool;
  const unnamed = JSON.stringify({ file: kindOf(image.source).protocol(image.source, access) });
  const outcome = await infoOf(tool, `json:${unnamed}`, left());
  if (outcome.status === 0) return parseInfo(image, 'measured', outcome, deadlineMs).format;
  if (outcome.deadlinePassed) throw failure(image, 'measured', outcome, deadlineMs);
  return null;
}

/** The first MiB, where labels, partition tables and file systems begin, has to answer in time; the rest may take longer. */
async function holdsData(
  tool: ImageTool,
  sizeBytes: number,
  direct: boolean,
  left: () => number,
  deadlineMs: number,
): Promise<boolean> {
  for (const bytes of [Math.min(sizeBytes, 1024 * 1024), sizeBytes]) {
    if (bytes === 0) return false;
    const whole = JSON.parse(tool.filename({ direct }).slice('json:'.length)) as object;
    const start = `json:${JSON.stringify({ driver: 'raw', size: bytes, file: whole })}`;
    const zeros = `json:${JSON.stringify({ driver: 'null-co', size: bytes, 'read-zeroes': true })}`;
    const outcome = await tool.qemuImg('compare', ['--force-share', start, zeros], left());
    // qemu-img compare: 0 identical, 1 different, more is an error.
    if (outcome.status === 1) return true;
    if (outcome.deadlinePassed && bytes === sizeBytes && sizeBytes > 1024 * 1024) return true;
    if (outcome.status !== 0) throw failure(tool.image, 'read', outcome, deadlineMs);
  }
  return false;
}

/** `late`: it neither answered nor failed by the deadline. */
export type ProbeAnswer = { ok: true } | { ok: false; reason: string; late: boolean };

/**
 * Reads the image's first 4 KiB in a process of its own, past the page cache where that is possible: whether this copy
 * answers, independently of the QEMU that uses it. A process that the kernel won't let go of is left behind, so a caller
 * that probes again and again must not do so faster than its probes end.
 * @throws CdpError `tool-missing`.
 */
export async function probeImage(image: Image, { deadlineMs, opener }: LookOptions): Promise<ProbeAnswer> {
  const left = budget(deadlineMs);
  const { source } = image;
  if (source.kind === 'nbd' && !isInFormat(image)) {
    const answer = await nbdAnswer(source, { deadlineMs, signal: AbortSignal.timeout(deadlineMs) });
    if (answer !== null) return answer.ok ? answer : { ...answer, late: false };
  }
  let tool: ImageTool;
  try {
    tool = await ImageTool.for(image, opener);
  } catch (error) {
    // Nobody can open it: a guest that waits for the other copy must not wait for this one's secret.
    if (error instanceof CdpError && isSecretProblem(error)) return { ok: false, reason: error.message, late: false };
    throw error;
  }
  const read = (filename: string): Promise<ToolOutcome> =>
    tool.qemuIo(['--read-only', '--force-share', '--cmd', 'read 0 4096', filename], left());
  const options = { locks: false, content: isInFormat(image) };
  let outcome = await read(tool.filename(options));
  if (refusesDirect(outcome)) outcome = await read(tool.filename({ ...options, direct: false }));
  if (outcome.status === 0) return { ok: true };
  return { ok: false, reason: reasonOf(outcome, deadlineMs), late: outcome.deadlinePassed };
}

/** A probe reads by its format, but for LUKS: to derive the key takes a processor for seconds, and tells nothing of the storage. */
function isInFormat({ format, encryption }: Image): boolean {
  return format !== 'raw' && encryption === undefined;
}

/**
 * Makes an empty image: a file, sparse and readable by its owner only, or an RBD image.
 * @throws CdpError `image-exists`, `image-not-creatable` for storage that can't be made from here, `folder-missing`,
 *   `storage-timeout`, `image-unusable`, `tool-missing`, and as ImageOpener.prepare.
 */
export async function createImage(image: Image, sizeBytes: number, { deadlineMs, opener }: LookOptions): Promise<void> {
  const left = budget(deadlineMs);
  const name = imageName(image);
  const tool = await ImageTool.for(image, opener);
  const creation = kindOf(image.source).creation(image.source, tool.access);
  if (creation === null) {
    throw new CdpError({
      code: 'image-not-creatable',
      message: `'${name}' can't be created: only files and Ceph RBD images can`,
      hint: `create it with its storage's own tools, ${sizeBytes} bytes or larger, and leave out --create`,
    });
  }
  const { filename, path } = creation;
  const { driver, options } = formatCreation(image, tool.access);
  const all = [...(path === null ? [] : ['preallocation=off']), ...options, ...creation.options];
  if (path !== null) await claimPath(image, path, left, deadlineMs);
  const args = ['-q', '-f', driver, ...all.flatMap((option) => ['-o', option]), filename, String(sizeBytes)];
  let outcome = await tool.qemuImg('create', args, left());
  for (let tries = 1; tries < maxCreateTries && outcome.stderr.includes(tooBusy); tries++)
    outcome = await tool.qemuImg('create', args, left());
  if (outcome.status === 0) return;
  if (path !== null) await runTool('rm', ['-f', '--', path], { deadlineMs });
  throw outcome.stderr.includes('File exists') ? existing(name) : failure(image, 'created', outcome, deadlineMs);
}

/** qemu-img create overwrites what is there; the shell's noclobber creates it or fails, with nothing in between. */
async function claimPath(image: Image, path: string, left: () => number, deadlineMs: number): Promise<void> {
  const claim = await runTool('sh', ['-c', 'umask 077; set -C; : > "$1"', 'sh', path], { deadlineMs: left() });
  if (claim.status !== 0) throw claimFailure(image, claim, deadlineMs);
}

/** For LUKS QEMU measures how fast keys are derived, which may fail on a busy host (crypto/pbkdf.c: qcrypto_pbkdf2_count_iters). */
const tooBusy = 'Unable to get accurate CPU usage';
const maxCreateTries = 30;

function formatCreation({ format, encryption }: Image, access: Access): { driver: string; options: string[] } {
  if (encryption === undefined) return { driver: format, options: [] };
  const key = `key-secret=${secretId(access, 'luks')}`;
  return format === 'raw'
    ? { driver: 'luks', options: [key] }
    : { driver: format, options: ['encrypt.format=luks', `encrypt.${key}`] };
}

function claimFailure(image: Image, claim: ToolOutcome, deadlineMs: number): CdpError {
  const name = imageName(image);
  if (/exists|is a directory/i.test(claim.stderr)) {
    return existing(name);
  }
  if (/nonexistent|no such file|not a directory/i.test(claim.stderr)) {
    return new CdpError({
      code: 'folder-missing',
      message: `'${name}' can't be created: its folder does not exist`,
      hint: 'create the folder, or mount the storage that should be there',
    });
  }
  return failure(image, 'created', claim, deadlineMs);
}

function existing(name: string): CdpError {
  return new CdpError({
    code: 'image-exists',
    message: `'${name}' can't be created: it exists`,
    hint: 'leave out --create to use it, or name another',
  });
}

/**
 * The image with symbolic links in its path followed, so that sameStorage can compare it. A path that does not exist yet
 * is taken as far as it does.
 * @throws CdpError `storage-timeout`, `image-unusable`, `tool-missing`.
 */
export async function resolveImage(image: Image, { deadlineMs }: Deadline): Promise<Image> {
  const { source } = image;
  const resolved = async (path: string): Promise<string> => {
    const outcome = await runTool('realpath', ['-z', '-m', '--', path], { deadlineMs });
    if (outcome.status !== 0) throw failure(image, 'looked up', outcome, deadlineMs);
    return outcome.stdout.replace(/\0$/, '');
  };
  return { ...image, source: await resolveSource(source, resolved) };
}

async function resolveSource(source: Source, resolved: (path: string) => Promise<string>): Promise<Source> {
  switch (source.kind) {
    case 'file':
    case 'block':
      return { ...source, path: await resolved(source.path) };
    case 'iscsi':
    case 'rbd':
      return source;
    case 'nbd':
      return 'socket' in source.server
        ? { ...source, server: { socket: await resolved(source.server.socket) } }
        : source;
  }
}

/** util/osdep.c and block/file-posix.c of QEMU name O_DIRECT where a file system does not take it. */
function refusesDirect(outcome: ToolOutcome): boolean {
  return outcome.status !== 0 && outcome.stderr.includes('O_DIRECT');
}

function failure(image: Image, verb: string, outcome: ToolOutcome, deadlineMs: number): CdpError {
  const name = imageName(image);
  const reason = reasonOf(outcome, deadlineMs);
  const message = `'${name}' could not be ${verb}: ${reason}`;
  if (outcome.deadlinePassed) {
    return new CdpError({
      code: 'storage-timeout',
      message,
      hint: 'see whether the storage and the way to it are in order',
    });
  }
  if (isMissing(image, outcome)) {
    return new CdpError({
      code: 'mirror-missing',
      message,
      hint: 'create it with --create, or see whether the storage that should have it is there',
    });
  }
  return new CdpError({
    code: 'image-unusable',
    message,
    hint: `see whether '${name}' exists, and is ${image.format}`,
  });
}

/** It can be created, and there is no such file or RBD image (QEMU's block/rbd.c: qemu_rbd_open). */
function isMissing({ source }: Image, { stderr }: ToolOutcome): boolean {
  if (source.kind === 'file') return stderr.includes(`'${source.path}': No such file or directory`);
  return source.kind === 'rbd' && stderr.includes(`error reading header from ${source.image}: No such file`);
}

/** qemu-io tells of failed reads on stdout. */
function reasonOf({ status, stdout, stderr, deadlinePassed }: ToolOutcome, deadlineMs: number): string {
  if (deadlinePassed) return `it did not answer within ${deadlineMs} ms`;
  return toolWords(`${stderr}\n${stdout}`) || `the tool ended with status ${String(status)}`;
}

/** The milliseconds that are left of a deadline. */
function budget(deadlineMs: number): () => number {
  const end = performance.now() + deadlineMs;
  return () => Math.max(0, end - performance.now());
}
