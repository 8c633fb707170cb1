import { UsageError } from '../errors.ts';
import type { BlockSource, FileSource, Image, NbdSource, Source, SourceKind } from './image.ts';
import { imageFormats, isPort, nbdDefaultPort, textProblem } from './image.ts';
import { encrypted, readEncryption } from './encryption.ts';
import { printIscsi, printRbd, readIscsi, readRbd } from './network-disk.ts';
import { pathFrom, serverName, Unsupported } from './source-parts.ts';
import { attributeOf, childOf, childrenOf, printXml, readXml, type XmlElement } from './xml.ts';

/** How one kind of source stands in libvirt's `<disk>` (docs/formatdomain: "Hard drives, floppy disks, CDROMs"). */
interface DiskForm<S extends Source> {
  /** `<disk type=...>`. */
  type: 'file' | 'block' | 'network';
  print(source: S): string;
  /** @throws Unsupported with a sentence that says why not. */
  read(source: XmlElement, disk: XmlElement): S;
}

const diskForms: { [K in SourceKind]: DiskForm<Extract<Source, { kind: K }>> } = {
  file: {
    type: 'file',
    print: ({ path }) => printXml('source', { file: path }),
    read: (source): FileSource => ({ kind: 'file', path: pathFrom(source, 'file') }),
  },
  block: {
    type: 'block',
    print: ({ path }) => printXml('source', { dev: path }),
    read: (source): BlockSource => ({ kind: 'block', path: pathFrom(source, 'dev') }),
  },
  nbd: { type: 'network', print: printNbd, read: readNbd },
  iscsi: { type: 'network', print: printIscsi, read: readIscsi },
  rbd: { type: 'network', print: printRbd, read: readRbd },
};

/** The `type` attribute and the `<source>` element of a `<disk>` that is on this image. */
export function diskSourceXml({ source, encryption }: Image): { type: string; sourceXml: string } {
  const form = diskForms[source.kind] as DiskForm<Source>;
  return { type: form.type, sourceXml: encrypted(form.print(source), encryption) };
}

/**
 * A libvirt `<disk>` without a target: what stands in a declaration, and what virDomainBlockCopy takes as its
 * destination (of which it reads the source and the driver's type only).
 */
export function imageToDiskXml(image: Image): string {
  const { type, sourceXml } = diskSourceXml(image);
  const driver = { name: 'qemu', type: image.format, cache: 'none', error_policy: 'stop', rerror_policy: 'stop' };
  return printXml('disk', { type, device: 'disk' }, printXml('driver', driver), sourceXml);
}

/** What a `<disk>` lies on, or a sentence that says why virt-cdp can't deal with it. */
export function readDiskImage(disk: XmlElement): { image: Image } | { unsupported: string } {
  try {
    const encryption = readEncryption(disk);
    return {
      image: { source: readSource(disk), format: readFormat(disk), ...(encryption !== null && { encryption }) },
    };
  } catch (error) {
    if (error instanceof Unsupported) return { unsupported: error.message };
    throw error;
  }
}

/** A backing file, and N of libvirt's node names libvirt-N-format and libvirt-N-storage. */
export interface BackingImage {
  image: Image;
  index: number;
}

/**
 * The backing files of a running domain's disk, the topmost first, as libvirt has opened them; null if one is of a kind that
 * virt-cdp can't deal with, or libvirt does not name its nodes.
 */
export function readBackingChain(disk: XmlElement): BackingImage[] | null {
  const chain: BackingImage[] = [];
  for (let at = childOf(disk, 'backingStore'); at?.attributes.has('type'); at = childOf(at, 'backingStore')) {
    const index = Number(attributeOf(at, 'index') ?? NaN);
    const format = imageFormats.find((known) => known === attributeOf(childOf(at, 'format'), 'type'));
    if (!Number.isInteger(index) || format === undefined) return null;
    try {
      const encryption = readEncryption(at);
      const image = { source: readSource(at), format, ...(encryption !== null && { encryption }) };
      chain.push({ image, index });
    } catch (error) {
      if (error instanceof Unsupported) return null;
      throw error;
    }
  }
  return chain;
}

/**
 * The image of a `<disk>` element.
 * @throws UsageError `disk-unsupported` for kinds, formats and options that virt-cdp can't deal with.
 */
export function imageFromDisk(disk: XmlElement): Image {
  const outcome = readDiskImage(disk);
  if ('image' in outcome) return outcome.image;
  throw new UsageError({
    code: 'disk-unsupported',
    message: `the disk can't be used: ${outcome.unsupported}`,
    hint: 'use a raw or qcow2 image, in clear or with LUKS, on a file, a block device, an NBD export, an iSCSI LUN or a Ceph RBD image',
  });
}

/**
 * The image of a `<disk>` given as text, as `--mirror-xml` does.
 * @throws UsageError `xml-invalid`, `disk-unsupported`.
 */
export function imageFromDiskXml(xml: string): Image {
  const root = readXml(xml);
  if (root.name === 'disk' && root.namespace === '') return imageFromDisk(root);
  throw new UsageError({
    code: 'xml-invalid',
    message: `the XML is not a libvirt <disk>: its root is <${root.name}>`,
    hint: 'give a <disk> element, as virsh blockcopy --xml takes it',
  });
}

function readFormat(disk: XmlElement): Image['format'] {
  const driver = childOf(disk, 'driver');
  const name = attributeOf(driver, 'name') ?? 'qemu';
  if (name !== 'qemu') throw new Unsupported(`its driver is '${name}', not QEMU's`);
  // Libvirt takes a missing type as raw: it does not probe (qemu.conf, allow_disk_format_probing is gone).
  const type = attributeOf(driver, 'type') ?? 'raw';
  const format = imageFormats.find((known) => known === type);
  if (format === undefined) throw new Unsupported(`its format is '${type}', and only raw and qcow2 are supported`);
  return format;
}

/** Things in a `<source>` without which the image would be another one, or could not be opened. */
const refusedSourceParts: Record<string, string> = {
  slices: 'it is a slice of a larger image',
  dataStore: 'its qcow2 image keeps its data in another file',
  reservations: 'it uses persistent reservations',
  ssl: 'it is reached by TLS',
  // A client that reconnects by itself hides that the server lost acknowledged writes.
  reconnect: 'its client reconnects by itself (<reconnect>), which would hide writes that the server lost',
};

function readSource(disk: XmlElement): Source {
  const type = attributeOf(disk, 'type') ?? 'file';
  const source = childOf(disk, 'source');
  if (source === null) throw new Unsupported('it has no source');
  for (const { name } of source.children) {
    const refused = Object.hasOwn(refusedSourceParts, name) ? refusedSourceParts[name] : undefined;
    if (refused !== undefined) throw new Unsupported(refused);
  }
  if (source.attributes.has('fdgroup'))
    throw new Unsupported('it is opened by a descriptor that was passed to libvirt');
  const kind = type === 'network' ? (attributeOf(source, 'protocol') ?? '') : type;
  if (!isKind(kind) || diskForms[kind].type !== type) {
    const what = type === 'network' ? `the network protocol '${kind}'` : `the disk type '${type}'`;
    throw new Unsupported(`${what} is not supported`);
  }
  return diskForms[kind].read(source, disk);
}

function isKind(kind: string): kind is SourceKind {
  return Object.hasOwn(diskForms, kind);
}

function printNbd({ server, exportName }: NbdSource): string {
  const host =
    'socket' in server
      ? { transport: 'unix', socket: server.socket }
      : { name: server.host, port: String(server.port) };
  const tls = 'tls' in server ? 'yes' : null;
  const attributes = { protocol: 'nbd', name: exportName === '' ? null : exportName, tls };
  return printXml('source', attributes, printXml('host', host));
}

function readNbd(source: XmlElement): NbdSource {
  if (childOf(source, 'auth') !== null) throw new Unsupported('it needs a login, which NBD has not');
  if (source.attributes.has('tlsHostname'))
    throw new Unsupported("its server's certificate is for another name (tlsHostname)");
  const exportName = attributeOf(source, 'name') ?? '';
  const problem = textProblem(exportName);
  if (problem !== null) throw new Unsupported(`its export's name is unusable: ${problem}`);
  const [host, ...others] = childrenOf(source, 'host');
  if (host === undefined) throw new Unsupported('its NBD server is not named');
  if (others.length > 0) throw new Unsupported('it names several NBD servers');
  const server = readNbdServer(host);
  if ((attributeOf(source, 'tls') ?? 'no') === 'no') return { kind: 'nbd', server, exportName };
  if ('socket' in server) throw new Unsupported('it is reached by TLS over a unix socket');
  return { kind: 'nbd', server: { ...server, tls: true }, exportName };
}

function readNbdServer(host: XmlElement): NbdSource['server'] {
  const transport = attributeOf(host, 'transport') ?? 'tcp';
  if (transport === 'unix') return { socket: pathFrom(host, 'socket') };
  if (transport !== 'tcp') throw new Unsupported(`the NBD transport '${transport}' is not supported`);
  const name = serverName(host);
  const port = Number(attributeOf(host, 'port') ?? nbdDefaultPort);
  if (!isPort(port)) throw new Unsupported("its NBD server's port is not between 1 and 65535");
  return { host: name, port };
}
