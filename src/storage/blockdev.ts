import type { Image } from '../domain/image.ts';
import { CdpError } from '../errors.ts';
import { kindOf } from './image.ts';
import { secretId, type Access, type ProtocolOptions } from './kind.ts';

/** What every layer has (BlockdevOptions in QEMU's qapi/block-core.json). A type, since no interface fits an index signature. */
type LayerOptions = {
  'node-name': string;
  'read-only': boolean;
  'auto-read-only': boolean;
  discard: 'unmap' | 'ignore';
  cache: { direct: boolean; 'no-flush': false };
};

/** The arguments of one `blockdev-add`. */
export type BlockdevOptions = LayerOptions & (ProtocolOptions | FormatNode);

type FormatNode =
  | { driver: 'raw'; file: string | (LayerOptions & FormatNode); size?: number }
  | (LuksOptions & { file: string })
  | (Qcow2Options & { file: string; backing: string | null });

type LuksOptions = { driver: 'luks'; 'key-secret': string };

type Qcow2Options = { driver: 'qcow2'; encrypt?: { format: 'luks'; 'key-secret': string } };

export interface LayerNames {
  /** The node of the protocol's driver, which has no other name. */
  storageNode: string;
  /** The topmost node. */
  formatNode: string;
  /** Show only the first so many bytes, a multiple of 512, of a larger image. */
  sizeBytes?: number;
  /** As libvirt opens a backing file: QEMU can let a job write to it. */
  readOnly?: boolean;
  /** The name of what QEMU was handed to open the image by, instead of a path. */
  descriptor?: string;
  /** The node of a qcow2 image's backing file; none is opened without. */
  backing?: string;
  /**
   * False: zeros are written, and not what a thin image may read as zeros. A full sync begins by unmapping all of an image that can do that
   * (QEMU, block/mirror.c: mirror_dirty_init), and by NBD every image says so: one that only can be written zeros to would be, twice.
   */
  unmap?: boolean;
  /** False where the file system refuses O_DIRECT, as tmpfs before Linux 6.6; measureImage tells. */
  direct?: boolean;
}

/**
 * The layers that make an image a node, in the order of adding; they are deleted in reverse. Modelled on libvirt's own
 * (qemuBlockStorageSourceGetBackendProps and -GetBlockdevFormatProps in qemu/qemu_block.c) but for two things:
 * auto-read-only is off, so that an image that can't be written fails at once, and no backing file is opened but a node that is
 * named, so that an image's header names no further file.
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
  const storage: BlockdevOptions = {
    ...through(kindOf(image.source).protocol(image.source, access), names.descriptor),
    ...options(storageNode),
    'read-only': false,
    'auto-read-only': names.readOnly ?? false,
  };
  const shown = sizeBytes === undefined ? {} : { size: sizeBytes };
  const format = formatOf(image, access);
  if (format.driver === 'raw') {
    const discard = names.unmap === false ? 'ignore' : 'unmap';
    return [storage, { ...format, ...options(formatNode), discard, file: storageNode, ...shown }];
  }
  const whole = {
    ...(format.driver === 'luks' ? format : { ...format, backing: names.backing ?? null }),
    file: storageNode,
  };
  if (sizeBytes === undefined) return [storage, { ...whole, ...options(formatNode) }];
  // Neither qcow2 nor LUKS can show a part of an image; a raw layer on top can, with which the node below it ends.
  const inner = { ...whole, ...options(`${formatNode}-${format.driver}`) };
  return [storage, { driver: 'raw', ...options(formatNode), file: inner, ...shown }];
}

function formatOf({ format, encryption }: Image, access: Access): { driver: 'raw' } | LuksOptions | Qcow2Options {
  if (encryption === undefined) return { driver: format };
  const key = { 'key-secret': secretId(access, 'luks') };
  return format === 'raw' ? { driver: 'luks', ...key } : { driver: format, encrypt: { format: 'luks', ...key } };
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
  /** False: reads what the image is stored in, header and all. */
  content?: boolean;
}

/**
 * The image as a json: filename, for qemu-img and qemu-io: no character of a path has a meaning there.
 * Pages are not cached unless `direct` is false.
 */
export function imageOptions(image: Image, access: Access, options: ToolOptions = {}): string {
  const cache = { direct: options.direct ?? true, 'no-flush': false };
  const protocol = kindOf(image.source).protocol(image.source, access);
  const unlocked = options.locks === false && 'filename' in protocol ? { locking: 'off' } : {};
  const format = options.content === false ? { driver: 'raw' } : formatOf(image, access);
  return `json:${JSON.stringify({ ...format, file: { ...protocol, ...unlocked, cache }, cache })}`;
}
