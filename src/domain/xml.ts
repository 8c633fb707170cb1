import { Parser } from 'xml2js';
import { errorText, UsageError } from '../errors.ts';

/** One element as it is read; comments and processing instructions are left out. */
export interface XmlElement {
  /** Without its prefix. */
  name: string;
  /** The namespace's URI; '' for none, as all of libvirt's own elements. */
  namespace: string;
  /** Attributes without a prefix. */
  attributes: Map<string, string>;
  children: XmlElement[];
  /** The text directly in it. */
  text: string;
}

/** What xml2js makes of an element under the options below. */
interface ParsedNode {
  $ns?: { uri: string; local: string };
  $?: Record<string, { local: string; prefix: string; uri: string; value: string }>;
  $$?: ParsedNode[];
  _?: string;
}

/** Libvirt's deepest own XML has about ten levels; what goes deeper was made to exhaust the stack. */
const maxDepth = 100;

/**
 * Reads a document.
 * @throws UsageError `xml-invalid` if it is not well-formed.
 */
export function readXml(xml: string): XmlElement {
  const root = parse(xml);
  if (root === null) throw invalid('it is empty');
  return toElement(root, 0);
}

function parse(xml: string): ParsedNode | null {
  const parser = new Parser({
    async: false,
    explicitRoot: false,
    explicitChildren: true,
    preserveChildrenOrder: true,
    xmlns: true,
    emptyTag: () => ({}),
  });
  const outcome: { error: unknown; root: ParsedNode | null } = { error: null, root: null };
  try {
    parser.parseString(xml, (error: unknown, root: unknown) => {
      // xml2js calls again for every further error; the first one tells the cause.
      outcome.error ??= error;
      outcome.root = typeof root === 'object' ? root : null;
    });
  } catch (error) {
    outcome.error ??= error;
  }
  if (outcome.error !== null) throw invalid(errorText(outcome.error).replaceAll(/\s+/g, ' '), outcome.error);
  return outcome.root;
}

function toElement(node: ParsedNode, depth: number): XmlElement {
  if (depth > maxDepth) throw invalid(`its elements are nested deeper than ${maxDepth} levels`);
  const attributes = Object.values(node.$ ?? {}).filter(({ prefix, local }) => prefix === '' && local !== 'xmlns');
  return {
    name: node.$ns?.local ?? '',
    namespace: node.$ns?.uri ?? '',
    attributes: new Map(attributes.map(({ local, value }) => [local, value])),
    children: (node.$$ ?? []).map((child) => toElement(child, depth + 1)),
    text: node._ ?? '',
  };
}

function invalid(why: string, cause?: unknown): UsageError {
  return new UsageError({ code: 'xml-invalid', message: `the XML could not be read: ${why}`, cause });
}

/** The children of that name in the parent's own namespace. */
export function childrenOf(parent: XmlElement, name: string): XmlElement[] {
  return parent.children.filter((child) => child.name === name && child.namespace === parent.namespace);
}

/** The first such child, as libvirt takes it; null if there is none. */
export function childOf(parent: XmlElement, name: string): XmlElement | null {
  return childrenOf(parent, name)[0] ?? null;
}

export function attributeOf(element: XmlElement | null, name: string): string | null {
  return element?.attributes.get(name) ?? null;
}

const escapes: Record<string, string> = { '&': '&amp;', '<': '&lt;', '>': '&gt;', "'": '&apos;', '"': '&quot;' };

/** As libvirt writes text and attributes (util/virbuffer.c: virBufferEscapeString). */
export function escapeXml(text: string): string {
  return text.replaceAll(/[&<>'"]/g, (character) => escapes[character] ?? '');
}

/** Prints an element; attributes that are null are left out. */
export function printXml(name: string, attributes: Record<string, string | null>, ...children: string[]): string {
  const printed = Object.entries(attributes).flatMap(([key, value]) =>
    value === null ? [] : [` ${key}='${escapeXml(value)}'`],
  );
  const start = `<${name}${printed.join('')}`;
  return children.length === 0 ? `${start}/>` : `${start}>${children.join('')}</${name}>`;
}
