import type { Image } from '../domain/image.ts';
import { CdpError } from '../errors.ts';
import { kindOf } from './image.ts';
import type { Access, ProtocolOptions } from './kind.ts';

/** What every layer has (BlockdevOptions in QEMU's qapi/block-core.json). A type, since no interface fits an index signature. */
type LayerOptions = {
  'node-name': string;
  'read-only': boolean;
  'auto-read-only': false;
  discard: 'unmap';
  cache: { direct: boolean; 'no-flush': false };
};

/** The arguments of one `blockdev-add`. */
export type BlockdevOptions = LayerOptions &
  (ProtocolOptions | { driver: 'raw'; file: string; size?: number } | { driver: 'qcow2'; file: string; backing: null });

export interface LayerNames {
  /** The node of the protocol's driver, which has no other name. */
  storageNode: string;
  /** The topmost node. */
  formatNode: string;
  /** Show only the first so many bytes, a multiple of 512, of a larger image. */
  sizeBytes?: number;
  readOnly?: boolean;
  /** The name of what QEMU was handed to open the image by, instead of a path. */
  descriptor?: string;
  /** False where the file system refuses O_DIRECT, as tmpfs before Linux 6.6; measureImage tells. */
  direct?: boolean;
}

/**
 * The layers that make an image a node, in the order of adding; they are deleted in reverse. Modelled on libvirt's own
 * (qemuBlockStorageSourceGetBackendProps and -GetBlockdevFormatProps in qemu/qemu_block.c) but for two things:
 * auto-read-only is off, so that an image that can't be written fails at once, and no backing file is ever opened, so that
 * an image's header names no further file.
 */
export function blockdevLayers(image: Image, access: Access, names: LayerNames): BlockdevOptions[] {
  const { storageNode, formatNode, sizeBytes } = names;
  if (sizeBytes !== undefined && (!Number.isSafeInteger(sizeBytes) || sizeBytes <= 0 || sizeBytes % 512 !== 0)) {
    throw new CdpError({
      code: 'size-unaligned',
      message: `${sizeBytes} bytes of an image can't be shown: QEMU wants a multiple of 512`,
    });
  }
  const options = (node: string): LayerOptions => ({
    'node-name': node,
    'read-only': names.readOnly ?? false,
    'auto-read-only': false,
    discard: 'unmap',
    cache: { direct: names.direct ?? true, 'no-flush': false },
  });
  const raw = (file: string): BlockdevOptions => ({
    driver: 'raw',
    ...options(formatNode),
    file,
    ...(sizeBytes !== undefined && { size: sizeBytes }),
  });
  const protocol = through(kindOf(image.source).protocol(image.source, access), names.descriptor);
  const storage: BlockdevOptions = { ...protocol, ...options(storageNode) };
  if (image.format === 'raw') return [storage, raw(storageNode)];
  // The qcow2 driver can't show a part of an image; a raw layer on top can.
  const qcow2Node = sizeBytes === undefined ? formatNode : `${formatNode}-qcow2`;
  const qcow2: BlockdevOptions = { driver: 'qcow2', ...options(qcow2Node), file: storageNode, backing: null };
  return sizeBytes === undefined ? [storage, qcow2] : [storage, qcow2, raw(qcow2Node)];
}

function through(protocol: ProtocolOptions, descriptor: string | undefined): ProtocolOptions {
  if (descriptor === undefined) return protocol;
  switch (protocol.driver) {
    case 'file':
    case 'host_device':
      return { ...protocol, filename: descriptor };
    case 'nbd':
      return { ...protocol, server: { type: 'fd', str: descriptor } };
    case 'iscsi':
    case 'rbd':
      return protocol;
  }
}

export interface ToolOptions {
  direct?: boolean;
  /** False: reads what a QEMU lets nobody read, as the target of its mirror job. */
  locks?: boolean;
}

/**
 * The image as a json: filename, for qemu-img and qemu-io: no character of a path has a meaning there.
 * Pages are not cached unless `direct` is false.
 */
export function imageOptions(image: Image, access: Access, options: ToolOptions = {}): string {
  const cache = { direct: options.direct ?? true, 'no-flush': false };
  const protocol = kindOf(image.source).protocol(image.source, access);
  const unlocked = options.locks === false && 'filename' in protocol ? { locking: 'off' } : {};
  return `json:${JSON.stringify({ driver: image.format, file: { ...protocol, ...unlocked, cache }, cache })}`;
}
