import { randomInt } from 'node:crypto';
import { once } from 'node:events';
import { Socket } from 'node:net';
import { z } from 'zod';
import { CdpError, errorText } from '../errors.ts';
import { socketUri } from '../libvirt/uri.ts';
import type { Source } from './image.ts';
import { runTool, type ToolOutcome } from './run-tool.ts';

/** A running QEMU, and the libvirt that speaks with it. */
export interface Recipient {
  libvirtSocket: string;
  /** libvirt's number of the running domain: no later QEMU of the domain has it. */
  domainId: number;
}

/** What QEMU was handed, under a name of its own instead of a path. */
export type Descriptor =
  | FileDescriptor
  /** Connected, and good for one `blockdev-add`. */
  | { is: 'socket'; name: string };

export interface FileDescriptor {
  is: 'file';
  name: string;
  fdsetId: number;
}

/** As high as QEMU reads an fdset's number (util/osdep.c: qemu_parse_fd); libvirt counts its own from 0. */
const firstFdset = 2 ** 30;
const lastFdset = 2 ** 31 - 1;

/**
 * Nothing is created, whatever became of the file since it was looked at: `<>` creates, but not through a link in /proc. Fails
 * as a whole if anything does.
 */
const opening = {
  readOnly: 'exec 3<"$1" &&',
  readWrite: 'exec 4<"$1" && exec 3<>/proc/self/fd/4 && exec 4<&- &&',
};
/**
 * An image that nobody else may read, and that has lost its name before QEMU gets it: it is gone with the last who has it open,
 * whoever is killed. Nobody can have put anything else under a name that was not known before.
 */
const making =
  'umask 077; path=$(mktemp "$1/virt-cdp-XXXXXXXXXX") || exit; qemu-img create -q -f qcow2 "$path" "$5" && exec 3<>"$path"; ' +
  'made=$?; rm -f "$path"; [ $made = 0 ] || exit $made; ';
const handing = 'exec virsh --quiet --connect "$2" qemu-monitor-command "$3" --pass-fds 3 "$4"';

const replySchema = z.object({ error: z.object({ desc: z.string() }).optional() });

/**
 * Opens what lies on this host, and hands it to a QEMU, which may not be able to itself: libvirt gives its QEMU access to the images
 * that it knows of and to nothing else. Null for what is reached by the network, which anyone can open. A file is
 * opened in another process, because that may hang; node can't send a descriptor either, so virsh does.
 * @throws CdpError `descriptor-refused`, `storage-timeout`, `tool-missing`
 */
export async function handDescriptor(
  source: Source,
  to: Recipient,
  { readOnly, deadlineMs }: { readOnly: boolean; deadlineMs: number },
): Promise<Descriptor | null> {
  switch (source.kind) {
    case 'file':
    case 'block':
      return handFile(source.path, to, readOnly ? opening.readOnly : opening.readWrite, deadlineMs);
    case 'nbd':
      return 'socket' in source.server ? handSocket(source.server.socket, to, deadlineMs) : null;
    case 'iscsi':
    case 'rbd':
      return null;
  }
}

/** A new, empty qcow2 image in a folder, without a name. @throws as handDescriptor */
export function handNewImage(
  folder: string,
  sizeBytes: number,
  to: Recipient,
  deadlineMs: number,
): Promise<FileDescriptor> {
  return handFile(folder, to, making, deadlineMs, [String(sizeBytes)]);
}

async function handFile(
  path: string,
  to: Recipient,
  open: string,
  deadlineMs: number,
  more: string[] = [],
): Promise<FileDescriptor> {
  const fdsetId = randomInt(firstFdset, lastFdset);
  const command = { execute: 'add-fd', arguments: { 'fdset-id': fdsetId } };
  const args = ['-c', `${open} ${handing}`, 'sh', path, ...recipient(to), JSON.stringify(command), ...more];
  requireDone(path, await runTool('sh', args, { deadlineMs }), deadlineMs);
  return { is: 'file', name: `/dev/fdset/${fdsetId}`, fdsetId };
}

async function handSocket(path: string, to: Recipient, deadlineMs: number): Promise<Descriptor> {
  const name = `cdp-${randomInt(firstFdset, lastFdset)}`;
  const command = { execute: 'getfd', arguments: { fdname: name } };
  const socket = await connect(path, deadlineMs);
  try {
    const args = ['-c', handing, 'sh', '', ...recipient(to), JSON.stringify(command)];
    requireDone(path, await runTool('sh', args, { deadlineMs, thirdFd: socket }), deadlineMs);
  } finally {
    socket.destroy();
  }
  return { is: 'socket', name };
}

function recipient({ libvirtSocket, domainId }: Recipient): [string, string] {
  return [socketUri(libvirtSocket), String(domainId)];
}

function requireDone(path: string, outcome: ToolOutcome, deadlineMs: number): void {
  if (outcome.deadlinePassed) {
    throw new CdpError({
      code: 'storage-timeout',
      message: `'${path}' could not be handed to QEMU within ${deadlineMs} ms`,
      hint: 'see whether the storage and libvirt are in order',
    });
  }
  if (outcome.status !== 0) throw refused(path, outcome.stderr);
  const { error } = replySchema.parse(JSON.parse(outcome.stdout));
  if (error !== undefined) throw refused(path, error.desc);
}

/** Paused from the start: what the server says first is for QEMU to read. */
async function connect(path: string, deadlineMs: number): Promise<Socket> {
  const socket = new Socket();
  socket.pause();
  socket.connect({ path });
  try {
    await once(socket, 'connect', { signal: AbortSignal.timeout(deadlineMs) });
    return socket;
  } catch (error) {
    socket.destroy();
    throw refused(path, errorText(error));
  }
}

function refused(path: string, why: string): CdpError {
  return new CdpError({
    code: 'descriptor-refused',
    message: `'${path}' could not be handed to QEMU: ${why.trim()}`,
    hint: 'virsh (libvirt-clients) must be 8.2 or later; where AppArmor confines QEMU it must be allowed the path',
  });
}
