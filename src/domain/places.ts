import { UsageError } from '../errors.ts';
import { readXml, type XmlElement } from './xml.ts';

/** Where an element stands in the text of its document; offsets into the string. */
export interface Place {
  element: XmlElement;
  /** Of the `<` of its start tag. */
  start: number;
  /** Behind the `>` of its start tag. */
  inner: number;
  /** Of the `<` of its end tag; `end` if it is written as an empty element. */
  innerEnd: number;
  /** Behind the whole element. */
  end: number;
  children: Place[];
}

const quoted = `"[^"]*"|'[^']*'`;

/** What begins with `<` in a well-formed document: only the last two alternatives are tags. */
const markup = new RegExp(
  [
    '<!--[^]*?-->',
    '<!\\[CDATA\\[[^]*?\\]\\]>',
    '<\\?[^]*?\\?>',
    `<!DOCTYPE(?:${quoted}|\\[(?:${quoted}|<!--[^]*?-->|[^\\]"'])*\\]|[^\\["'>])*>`,
    '(?<endTag></[^>]*>)',
    `(?<startTag><(?:${quoted}|[^"'>])*>)`,
  ].join('|'),
  'g',
);

/**
 * The root's place, from which those of all others are reached.
 * @throws UsageError `xml-invalid` if the document is not well-formed.
 */
export function placesOf(xml: string): Place {
  const elements = inDocumentOrder(readXml(xml));
  const open: Place[] = [];
  let root: Place | undefined;
  for (const { 0: text, index, groups } of xml.matchAll(markup)) {
    const end = index + text.length;
    if (groups?.['startTag'] !== undefined) {
      const element = elements.next().value;
      if (element === undefined) throw unlikeRead();
      const place: Place = { element, start: index, inner: end, innerEnd: end, end, children: [] };
      open.at(-1)?.children.push(place);
      root ??= place;
      if (!text.endsWith('/>')) open.push(place);
    } else if (groups?.['endTag'] !== undefined) {
      const place = open.pop();
      if (place === undefined) throw unlikeRead();
      place.innerEnd = index;
      place.end = end;
    }
  }
  if (root === undefined || open.length > 0 || elements.next().done !== true) throw unlikeRead();
  return root;
}

/** The children without a namespace, as all of libvirt's own; metadata of others may use the same names. */
export function childPlaces(parent: Place, name: string): Place[] {
  return parent.children.filter(({ element }) => element.name === name && element.namespace === '');
}

function* inDocumentOrder(element: XmlElement): Generator<XmlElement, undefined> {
  yield element;
  for (const child of element.children) yield* inDocumentOrder(child);
}

/** The reader and the search for tags must have seen the same elements, or places would be those of others. */
function unlikeRead(): UsageError {
  return new UsageError({ code: 'xml-invalid', message: 'the XML could not be read: its tags are not in order' });
}
