import { CdpError } from '../errors.ts';
import type { ErrorPolicies } from './declaration.ts';
import { diskSourceXml } from './disk-image.ts';
import type { Image } from './image.ts';
import { childPlaces, placesOf, type Place } from './places.ts';
import { escapeXml, printXml, readXml, type XmlElement } from './xml.ts';

// INVARIANT: an edit replaces the characters that its docstring speaks of, and every other character of the document stays.

/** What stands between two offsets is replaced by a text. */
interface Change {
  from: number;
  to: number;
  text: string;
}

/**
 * The XML with that disk on another image: the disk's `type`, `<source>` and the driver's `type` are replaced, and what
 * belongs to the old source alone goes (`<backingStore>`, `<mirror>`, old-style `<auth>` and `<encryption>`, qcow2's
 * options if the new image is raw).
 * @throws CdpError `disk-not-found`; UsageError `xml-invalid`.
 */
export function withDiskImage(xml: string, dev: string, image: Image): string {
  const disk = findDisk(placesOf(xml), dev);
  const { type, sourceXml } = diskSourceXml(image);
  const [driver] = childPlaces(disk, 'driver');
  const [source, ...otherSources] = childPlaces(disk, 'source');
  const gone = ['backingStore', 'mirror', 'auth', 'encryption'].flatMap((name) => childPlaces(disk, name));
  const raw = image.format === 'raw';
  return changed(xml, [
    setAttribute(xml, disk, 'type', type),
    ...(driver === undefined
      ? [firstChild(xml, disk, printXml('driver', { name: 'qemu', type: image.format }))]
      : [setAttribute(xml, driver, 'type', image.format)]),
    ...(driver !== undefined && raw ? [setAttribute(xml, driver, 'discard_no_unref', null)] : []),
    ...(driver !== undefined && raw ? childPlaces(driver, 'metadata_cache').map((cache) => remove(xml, cache)) : []),
    source === undefined
      ? firstChild(xml, disk, sourceXml, driver?.end)
      : { from: source.start, to: source.end, text: sourceXml },
    ...[...otherSources, ...gone].map((place) => remove(xml, place)),
  ]);
}

/**
 * The XML with these error policies on that disk's `<driver>`; null takes an attribute away.
 * @throws CdpError `disk-not-found`; UsageError `xml-invalid`.
 */
export function withErrorPolicy(xml: string, dev: string, { errorPolicy, readErrorPolicy }: ErrorPolicies): string {
  const disk = findDisk(placesOf(xml), dev);
  const [driver] = childPlaces(disk, 'driver');
  const policies = { error_policy: errorPolicy, rerror_policy: readErrorPolicy };
  return changed(
    xml,
    driver === undefined
      ? [firstChild(xml, disk, printXml('driver', { name: 'qemu', ...policies }))]
      : Object.entries(policies).map(([name, value]) => setAttribute(xml, driver, name, value)),
  );
}

/**
 * The XML in which failed I/O on any of these disks pauses the domain; see hasStopPolicy.
 * @throws as withErrorPolicy.
 */
export function withStopPolicy(xml: string, devs: string[]): string {
  return devs.reduce((text, dev) => withErrorPolicy(text, dev, { errorPolicy: 'stop', readErrorPolicy: 'stop' }), xml);
}

/**
 * The XML without the metadata of that namespace.
 * @throws UsageError `xml-invalid`.
 */
export function withoutMetadata(xml: string, uri: string): string {
  return changed(xml, removeMetadata(xml, placesOf(xml), uri));
}

/**
 * The XML with this metadata in place of what that namespace had: what virDomainSetMetadata does, for XML that is to be
 * defined. The element comes without namespace, as declarationToXml and statusToXml give it.
 * @throws UsageError `xml-invalid`.
 */
export function withMetadata(xml: string, uri: string, key: string, elementXml: string): string {
  const root = placesOf(xml);
  const text = namespaced(readXml(elementXml), key, { [`xmlns:${key}`]: uri });
  const [metadata] = childPlaces(root, 'metadata');
  return changed(xml, [
    ...removeMetadata(xml, root, uri),
    metadata === undefined ? lastChild(xml, root, `<metadata>${text}</metadata>`) : lastChild(xml, metadata, text),
  ]);
}

function findDisk(root: Place, dev: string): Place {
  const disks = childPlaces(root, 'devices').flatMap((devices) => childPlaces(devices, 'disk'));
  const devOf = (disk: Place): string[] =>
    childPlaces(disk, 'target').map(({ element }) => element.attributes.get('dev') ?? '');
  const disk = disks.find((each) => devOf(each).includes(dev));
  if (disk !== undefined) return disk;
  const known = disks.flatMap(devOf);
  throw new CdpError({
    code: 'disk-not-found',
    message: `the domain has no disk '${dev}'`,
    hint: known.length > 0 ? `its disks are ${known.join(', ')}` : 'it has no disks at all',
  });
}

function changed(xml: string, changes: Change[]): string {
  const ordered = [...changes].sort((a, b) => a.from - b.from);
  let at = 0;
  let text = '';
  for (const change of ordered) {
    text += xml.slice(at, change.from) + change.text;
    at = change.to;
  }
  return text + xml.slice(at);
}

/** The attribute keeps its place and its quotes; a new one comes last, and null takes it away. */
function setAttribute(xml: string, { start, inner }: Place, name: string, value: string | null): Change {
  const tag = xml.slice(start, inner);
  const attributes = tag.matchAll(/(?<space>\s+)(?<name>[^\s=/>]+)\s*=\s*(?<value>"[^"]*"|'[^']*')/g);
  for (const { 0: text, index, groups } of attributes) {
    if (groups?.['name'] !== name) continue;
    const to = start + index + text.length;
    if (value === null) return { from: start + index, to, text: '' };
    const former = groups['value'] ?? '';
    return { from: to - former.length, to, text: `${former.charAt(0)}${escapeXml(value)}${former.charAt(0)}` };
  }
  const end = start + tag.replace(/\s*\/?>$/, '').length;
  return { from: end, to: end, text: value === null ? '' : ` ${name}='${escapeXml(value)}'` };
}

/** A child before all others, or behind an offset, indented as the first one is. */
function firstChild(xml: string, { inner }: Place, text: string, at = inner): Change {
  return { from: at, to: at, text: `${/^\s*(?=<)/.exec(xml.slice(inner))?.[0] ?? ''}${text}` };
}

function lastChild(xml: string, { element, start, inner, innerEnd, end }: Place, text: string): Change {
  if (innerEnd < end) return { from: innerEnd, to: innerEnd, text };
  const tag = xml.slice(start, inner).replace(/\/>$/, '>');
  return { from: start, to: end, text: `${tag}${text}</${qualifiedName(tag, element)}>` };
}

function qualifiedName(tag: string, { name }: XmlElement): string {
  return /^<([^\s/>]+)/.exec(tag)?.[1] ?? name;
}

/** With the white space before it, so that no empty line is left. */
function remove(xml: string, { start, end }: Place): Change {
  const before = /(?<=>)\s+$/.exec(xml.slice(0, start))?.[0] ?? '';
  return { from: start - before.length, to: end, text: '' };
}

function removeMetadata(xml: string, root: Place, uri: string): Change[] {
  return childPlaces(root, 'metadata').flatMap(({ children }) =>
    children.filter(({ element }) => element.namespace === uri).map((place) => remove(xml, place)),
  );
}

function namespaced(
  { name, attributes, children }: XmlElement,
  key: string,
  declarations: Record<string, string> = {},
): string {
  const printed = children.map((child) => namespaced(child, key));
  return printXml(`${key}:${name}`, { ...declarations, ...Object.fromEntries(attributes) }, ...printed);
}
