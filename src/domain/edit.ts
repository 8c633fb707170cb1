import { DOMParser, XMLSerializer, type Document, type Element, type Node } from '@xmldom/xmldom';
import { CdpError, errorText, UsageError } from '../errors.ts';
import type { ErrorPolicies } from './declaration.ts';
import { diskSourceXml } from './disk-image.ts';
import type { Image } from './image.ts';

// INVARIANT: an edit returns the document as it was but for what its docstring names. Quotes and the way in which an
// empty element is written may change; comments, text, foreign namespaces and the order of everything do not.

/**
 * The XML with that disk on another image: the disk's `type`, `<source>` and the driver's `type` are replaced, and what
 * belongs to the old source alone goes (`<backingStore>`, `<mirror>`, old-style `<auth>` and `<encryption>`, qcow2's
 * options if the new image is raw).
 * @throws CdpError `disk-not-found`; UsageError `xml-invalid`.
 */
export function withDiskImage(xml: string, dev: string, image: Image): string {
  return edited(xml, (document) => {
    const disk = findDisk(document, dev);
    const { type, sourceXml } = diskSourceXml(image.source);
    disk.setAttribute('type', type);
    for (const name of ['backingStore', 'mirror', 'auth', 'encryption']) removeAll(disk, name);
    const driver = driverOf(document, disk);
    driver.setAttribute('type', image.format);
    if (image.format === 'raw') {
      removeAll(driver, 'metadata_cache');
      driver.removeAttribute('discard_no_unref');
    }
    const source = document.importNode(parse(sourceXml).documentElement as Element, true);
    const [old, ...others] = childrenOf(disk, 'source');
    if (old === undefined) disk.insertBefore(source, driver.nextSibling);
    else disk.replaceChild(source, old);
    for (const other of others) removeWithIndent(other);
  });
}

/**
 * The XML with these error policies on that disk's `<driver>`; null takes an attribute away.
 * @throws CdpError `disk-not-found`; UsageError `xml-invalid`.
 */
export function withErrorPolicy(xml: string, dev: string, { errorPolicy, readErrorPolicy }: ErrorPolicies): string {
  return edited(xml, (document) => {
    const driver = driverOf(document, findDisk(document, dev));
    setOrRemove(driver, 'error_policy', errorPolicy);
    setOrRemove(driver, 'rerror_policy', readErrorPolicy);
  });
}

/**
 * The XML without the metadata of that namespace.
 * @throws UsageError `xml-invalid`.
 */
export function withoutMetadata(xml: string, uri: string): string {
  return edited(xml, (document) => removeMetadata(document, uri));
}

/**
 * The XML with this metadata in place of what that namespace had: what virDomainSetMetadata does, for XML that is to be
 * defined. The element comes without namespace, as declarationToXml and statusToXml give it.
 * @throws UsageError `xml-invalid`.
 */
export function withMetadata(xml: string, uri: string, key: string, elementXml: string): string {
  return edited(xml, (document) => {
    removeMetadata(document, uri);
    const domain = rootOf(document);
    const [metadata] = childrenOf(domain, 'metadata');
    const parent = metadata ?? domain.appendChild(document.createElement('metadata'));
    parent.appendChild(namespaced(document, rootOf(parse(elementXml)), uri, key));
  });
}

function edited(xml: string, edit: (document: Document) => void): string {
  const document = parse(xml);
  edit(document);
  // A carriage return that is left came from a character reference; written as it is, it would be read as a newline.
  return new XMLSerializer().serializeToString(document).replaceAll('\r', '&#13;');
}

function parse(xml: string): Document {
  try {
    return new DOMParser({ onError: stopParsing, normalizeLineEndings }).parseFromString(xml, 'text/xml');
  } catch (error) {
    throw new UsageError({
      code: 'xml-invalid',
      message: `the XML could not be read: ${errorText(error).replaceAll(/\s+/g, ' ')}`,
      cause: error,
    });
  }
}

/** Warnings are about what is not XML, but for one: U+FFFD is a character like any other. */
function stopParsing(_level: string, message: string): void {
  if (!message.startsWith('Unicode replacement character')) throw new Error(message);
}

/** As XML 1.0 has it; xmldom's own is XML 1.1's, which turns U+0085 and U+2028 into newlines too. */
function normalizeLineEndings(xml: string): string {
  return xml.replaceAll(/\r\n?/g, '\n');
}

function rootOf(document: Document): Element {
  const root = document.documentElement;
  if (root === null) throw new UsageError({ code: 'xml-invalid', message: 'the XML could not be read: it is empty' });
  return root;
}

function findDisk(document: Document, dev: string): Element {
  const disks = childrenOf(rootOf(document), 'devices').flatMap((devices) => childrenOf(devices, 'disk'));
  const disk = disks.find((each) => childrenOf(each, 'target').some((target) => target.getAttribute('dev') === dev));
  if (disk !== undefined) return disk;
  const known = disks.flatMap((each) => childrenOf(each, 'target').map((target) => target.getAttribute('dev') ?? ''));
  throw new CdpError({
    code: 'disk-not-found',
    message: `the domain has no disk '${dev}'`,
    hint: known.length > 0 ? `its disks are ${known.join(', ')}` : 'it has no disks at all',
  });
}

/** The disk's `<driver>`, made if it is not there; libvirt puts it first. */
function driverOf(document: Document, disk: Element): Element {
  const [driver] = childrenOf(disk, 'driver');
  if (driver !== undefined) return driver;
  const made = document.createElement('driver');
  made.setAttribute('name', 'qemu');
  disk.insertBefore(made, disk.firstChild);
  return made;
}

function removeMetadata(document: Document, uri: string): void {
  for (const metadata of childrenOf(rootOf(document), 'metadata')) {
    for (const element of elementsOf(metadata)) if (element.namespaceURI === uri) removeWithIndent(element);
  }
}

function namespaced(document: Document, element: Element, uri: string, key: string): Element {
  const made = document.createElementNS(uri, `${key}:${element.localName ?? element.tagName}`);
  for (const { name, value } of Array.from(element.attributes)) made.setAttribute(name, value);
  for (const child of elementsOf(element)) made.appendChild(namespaced(document, child, uri, key));
  return made;
}

function setOrRemove(element: Element, name: string, value: string | null): void {
  if (value === null) element.removeAttribute(name);
  else element.setAttribute(name, value);
}

function removeAll(parent: Element, name: string): void {
  for (const child of childrenOf(parent, name)) removeWithIndent(child);
}

/** With the white space before it, so that no empty line is left. */
function removeWithIndent(element: Element): void {
  const before: Node | null = element.previousSibling;
  if (before?.nodeType === before?.TEXT_NODE && before?.nodeValue?.trim() === '')
    before.parentNode?.removeChild(before);
  element.parentNode?.removeChild(element);
}

function elementsOf(parent: Element): Element[] {
  return Array.from(parent.childNodes).filter((node): node is Element => node.nodeType === node.ELEMENT_NODE);
}

/** Libvirt's own elements have no namespace; metadata of others may use the same names. */
function childrenOf(parent: Element, name: string): Element[] {
  return elementsOf(parent).filter((child) => child.localName === name && (child.namespaceURI ?? '') === '');
}
