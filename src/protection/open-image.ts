import type { Image, Source } from '../domain/image.ts';
import { withObjects } from '../graph/secrets.ts';
import { openNodes } from '../graph/surgery.ts';
import { forgetUnsent } from '../health/tcp-connections.ts';
import { QmpError } from '../qmp/errors.ts';
import type { Monitor } from '../qmp/monitor.ts';
import { blockdevLayers, type LayerNames } from '../storage/blockdev.ts';
import { handDescriptor, type Descriptor } from '../storage/descriptors.ts';
import type { Access } from '../storage/kind.ts';
import type { Workbench } from './execute.ts';

/**
 * Opens an image in a domain's QEMU, past the page cache. Whatever of ours QEMU opens, it opens here: what lies on this host is handed to it
 * open (docs/decisions/handed-descriptors.md).
 * @throws QmpError; CdpError as handDescriptor and forgetUnsent
 */
export async function openImage(
  { live, opener, probeDeadlineMs }: Pick<Workbench, 'live' | 'opener' | 'probeDeadlineMs'>,
  image: Image,
  names: LayerNames,
): Promise<void> {
  const { monitor, recipient } = live;
  const prepared = await opener.prepare(image, names.storageNode);
  const open = (through: LayerNames): Promise<void> =>
    withObjects(monitor, prepared, () => openLayers(monitor, image, prepared.access, through));
  // To backing files libvirt gave QEMU access when it opened them, and its own jobs have QEMU open them again, by their paths.
  const libvirtsOwn = names.readOnly === true;
  if (libvirtsOwn) return open(names);
  if (image.source.kind === 'nbd' && 'host' in image.source.server) await forgetUnsent(image.source.server);
  if (isUnixSocket(image.source) && (await succeeds(() => open(names)))) return;
  const descriptor = await handDescriptor(image.source, recipient, { readOnly: false, deadlineMs: probeDeadlineMs });
  try {
    await open(descriptor === null ? names : { ...names, descriptor: descriptor.name });
  } finally {
    if (descriptor !== null) await takeBack(monitor, descriptor);
  }
}

async function openLayers(monitor: Monitor, image: Image, access: Access, names: LayerNames): Promise<void> {
  try {
    await openNodes(monitor, blockdevLayers(image, access, names));
  } catch (error) {
    if (!(error instanceof QmpError && refusesDirect(error))) throw error;
    await openNodes(monitor, blockdevLayers(image, access, { ...names, direct: false }));
  }
}

/** A connection that QEMU made itself it can make again. */
function isUnixSocket(source: Source): boolean {
  return source.kind === 'nbd' && 'socket' in source.server;
}

async function succeeds(open: () => Promise<void>): Promise<boolean> {
  try {
    await open();
    return true;
  } catch (error) {
    if (!(error instanceof QmpError && cantConnect(error))) throw error;
    return false;
  }
}

/** util/qemu-sockets.c: unix_connect_saddr. */
function cantConnect({ description }: QmpError): boolean {
  return description.includes('Failed to connect');
}

/** Nodes have descriptors of their own by now; where none was made of it, this one would stay open. */
async function takeBack(monitor: Monitor, descriptor: Descriptor): Promise<void> {
  try {
    if (descriptor.is === 'file') await monitor.execute('remove-fd', { 'fdset-id': descriptor.fdsetId });
    else await monitor.execute('closefd', { fdname: descriptor.name });
  } catch (error) {
    // A socket is the node's own once it is used.
    if (!(error instanceof QmpError)) throw error;
  }
}

/** A file system without O_DIRECT (tmpfs before Linux 6.6): by a path QEMU says so (util/osdep.c), by a descriptor it says what it can't set. */
function refusesDirect({ description }: QmpError): boolean {
  return description.includes('O_DIRECT') || /Could not dup FD .*: Invalid argument/.test(description);
}
