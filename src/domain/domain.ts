import { UsageError } from '../errors.ts';
import { DECLARATION_URI, declarationFromElement, type Declaration, type ErrorPolicies } from './declaration.ts';
import { readBackingChain, readDiskImage, type BackingImage } from './disk-image.ts';
import type { Image } from './image.ts';
import { STATUS_URI, statusFromElement, type LiveStatus } from './live-status.ts';
import { obstacleTo } from './protectable.ts';
import { attributeOf, childOf, childrenOf, readXml, type XmlElement } from './xml.ts';

/** What virt-cdp wants to know of a libvirt domain, live or persistent. */
export interface Domain {
  name: string;
  uuid: string;
  /** Null in the XML of a domain that does not run. */
  id: number | null;
  /** The most that the guest may have (libvirt prints KiB); null if the XML does not say so. */
  memoryBytes: number | null;
  disks: DomainDisk[];
  /** Null if there is none, or none that can be read. */
  declaration: Declaration | null;
  /** Why the declaration that is there can't be read: it must not pass for an undeclared domain. */
  declarationProblem: UsageError | null;
  /** The live metadata's status; null if there is none. It may be of another QEMU instance. */
  status: LiveStatus | null;
}

export interface DomainDisk extends ErrorPolicies {
  /** The target's name, e.g. `vda`. */
  dev: string;
  /** `virtio`, `scsi`, ...; '' if the XML does not say. */
  bus: string;
  /** `disk`, `cdrom`, `lun`, `floppy`. */
  device: string;
  readOnly: boolean;
  shareable: boolean;
  transient: boolean;
  /** Null if there is none, or of a kind that virt-cdp can't deal with. */
  image: Image | null;
  /** What libvirt alone can find: a volume of a storage pool. */
  volume: { pool: string; name: string } | null;
  /** Why it can't be protected, as a sentence; null if it can. */
  unsupported: string | null;
  /** What to do about that. */
  unsupportedHint: string | null;
  /** An I/O thread of QEMU's serves it. */
  ioThread: boolean;
  /** E.g. `virtio-disk0`; null in a persistent XML. */
  alias: string | null;
  /** N of libvirt's node names libvirt-N-format and libvirt-N-storage; null unless the domain runs. */
  sourceIndex: number | null;
  /** As readBackingChain has it; of a domain that does not run, what the definition names. */
  backing: BackingImage[] | null;
}

/**
 * Reads a libvirt domain XML.
 * @throws UsageError `xml-invalid` if it is not one.
 */
export function parseDomain(xml: string): Domain {
  const root = readXml(xml);
  const name = childOf(root, 'name')?.text ?? '';
  const uuid = childOf(root, 'uuid')?.text.trim() ?? '';
  if (root.name !== 'domain' || name === '') {
    throw new UsageError({
      code: 'xml-invalid',
      message: 'the XML is not a libvirt domain: it has no <domain> or <name>',
    });
  }
  const devices = childOf(root, 'devices');
  const metadata = childOf(root, 'metadata')?.children ?? [];
  const status = metadata.find(({ namespace }) => namespace === STATUS_URI);
  return {
    name,
    uuid,
    id: integer(attributeOf(root, 'id')),
    memoryBytes: memoryOf(childOf(root, 'memory')),
    disks: devices === null ? [] : childrenOf(devices, 'disk').map((disk) => readDisk(disk, devices)),
    ...readDeclaration(metadata.find(({ namespace }) => namespace === DECLARATION_URI)),
    status: status === undefined ? null : statusFromElement(status),
  };
}

/**
 * Both a failed write and a failed read pause the domain. Without rerror_policy libvirt gives QEMU's rerror the value
 * of error_policy (qemuBuildDiskGetErrorPolicy in qemu/qemu_command.c; tried on 9.0).
 */
export function hasStopPolicy({ errorPolicy, readErrorPolicy }: ErrorPolicies): boolean {
  return errorPolicy === 'stop' && (readErrorPolicy ?? errorPolicy) === 'stop';
}

/** A failed write or read is told to the guest as done. */
export function ignoresErrors({ errorPolicy, readErrorPolicy }: ErrorPolicies): boolean {
  return errorPolicy === 'ignore' || readErrorPolicy === 'ignore';
}

function readDeclaration(element: XmlElement | undefined): Pick<Domain, 'declaration' | 'declarationProblem'> {
  if (element === undefined) return { declaration: null, declarationProblem: null };
  try {
    return { declaration: declarationFromElement(element), declarationProblem: null };
  } catch (error) {
    if (error instanceof UsageError) return { declaration: null, declarationProblem: error };
    throw error;
  }
}

function memoryOf(memory: XmlElement | null): number | null {
  const kibibytes = attributeOf(memory, 'unit') === 'KiB' ? integer(memory?.text.trim() ?? null) : null;
  return kibibytes === null ? null : kibibytes * 1024;
}

function readDisk(element: XmlElement, devices: XmlElement): DomainDisk {
  const target = childOf(element, 'target');
  const driver = childOf(element, 'driver');
  const outcome = readDiskImage(element);
  const obstacle = obstacleTo(element, devices, 'unsupported' in outcome ? outcome.unsupported : null);
  return {
    dev: attributeOf(target, 'dev') ?? '',
    bus: attributeOf(target, 'bus') ?? '',
    device: attributeOf(element, 'device') ?? 'disk',
    readOnly: childOf(element, 'readonly') !== null,
    shareable: childOf(element, 'shareable') !== null,
    transient: childOf(element, 'transient') !== null,
    image: 'image' in outcome ? outcome.image : null,
    volume: readVolume(element),
    unsupported: obstacle?.why ?? null,
    unsupportedHint: obstacle?.hint ?? null,
    errorPolicy: attributeOf(driver, 'error_policy'),
    readErrorPolicy: attributeOf(driver, 'rerror_policy'),
    ioThread: attributeOf(driver, 'iothread') !== null,
    alias: attributeOf(childOf(element, 'alias'), 'name'),
    sourceIndex: integer(attributeOf(childOf(element, 'source'), 'index')),
    backing: readBackingChain(element),
  };
}

function readVolume(disk: XmlElement): DomainDisk['volume'] {
  const source = childOf(disk, 'source');
  const [pool, name] = [attributeOf(source, 'pool'), attributeOf(source, 'volume')];
  return attributeOf(disk, 'type') === 'volume' && pool !== null && name !== null ? { pool, name } : null;
}

function integer(text: string | null): number | null {
  return text !== null && /^\d{1,15}$/.test(text) ? Number(text) : null;
}
