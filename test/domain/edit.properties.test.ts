import assert from 'node:assert/strict';
import { DOMParser, type Node } from '@xmldom/xmldom';
import fc from 'fast-check';
import { parseDomain } from '../../src/domain/domain.ts';
import { withDiskImage, withErrorPolicy, withMetadata, withoutMetadata } from '../../src/domain/edit.ts';
import type { Image } from '../../src/domain/image.ts';
import { anyImage } from '../storage/images.ts';
import { domainXmls } from './fixtures.ts';

/** Everything in a document but white space, a line each, in order, as another parser sees it; disks by their target. */
function lines(xml: string): string[] {
  const found: string[] = [];
  const visit = (node: Node, path: string): void => {
    const here = `${path}/${node.nodeName}`;
    const attributes =
      'attributes' in node ? Array.from(node.attributes as Iterable<{ name: string; value: string }>) : [];
    const isText = node.nodeName === '#text';
    const text = isText ? (node.nodeValue ?? '').replaceAll(/\s+/g, '') : (node.nodeValue ?? '');
    if (!isText || text !== '') found.push(`${here} ${JSON.stringify(text)}`);
    found.push(...attributes.map(({ name, value }) => `${here} @${name}=${JSON.stringify(value)}`));
    for (const child of Array.from(node.childNodes)) visit(child, here);
  };
  visit(new DOMParser({ onError: () => undefined }).parseFromString(xml, 'text/xml'), '');
  return found;
}

/** Two texts become one where an element between them is taken away. */
function joined(all: string[]): string[] {
  return all.reduce<string[]>((found, line) => {
    const last = found.at(-1) ?? '';
    const path = /^\S*#text (?=")/.exec(line)?.[0];
    return path !== undefined && last.startsWith(path)
      ? [...found.slice(0, -1), last.slice(0, -1) + line.slice(path.length + 1)]
      : [...found, line];
  }, []);
}

/** What withDiskImage may touch of a disk. */
const ofTheImage =
  /^\/#document\/domain\/devices\/disk(?: @type=|\/(?:source|backingStore|mirror|auth|encryption|driver\/metadata_cache)\b|\/driver (?:"|@(?:type|discard_no_unref|name="qemu")))/;

function assertOnlyImageChanged(before: string, after: string): void {
  const others = (xml: string): string[] => joined(lines(xml).filter((line) => !ofTheImage.test(line)));
  assert.deepEqual(others(after), others(before));
  assertWithinOneDisk(before, after);
}

/** Character by character: what lies between the first and the last difference is the inside of one `<disk>`. */
function assertWithinOneDisk(...documents: [before: string, after: string]): void {
  // What is said in comments and the like is no element; that it stays has been looked at.
  const [before, after] = documents.map((xml) =>
    xml.replaceAll(/<!--[^]*?-->|<!\[CDATA\[[^]*?\]\]>|<\?[^]*?\?>/g, (talk) => '.'.repeat(talk.length)),
  ) as [string, string];
  const shorter = Math.min(before.length, after.length);
  let head = 0;
  while (head < shorter && before[head] === after[head]) head += 1;
  let tail = 0;
  while (tail < shorter - head && before.at(-1 - tail) === after.at(-1 - tail)) tail += 1;
  for (const text of [before.slice(head, before.length - tail), after.slice(head, after.length - tail)])
    assert.doesNotMatch(text, /<\/?disk\b/);
}

function assertEdited(xml: string, dev: string, image: Image): void {
  const after = withDiskImage(xml, dev, image);
  assertOnlyImageChanged(xml, after);
  const [old, now] = [parseDomain(xml), parseDomain(after)];
  const index = old.disks.findIndex((disk) => disk.dev === dev);
  assert.deepEqual(now.disks[index]?.image, image);
  old.disks.splice(index, 1);
  now.disks.splice(index, 1);
  assert.deepEqual(now, old);
  assert.equal(withDiskImage(after, dev, image), after, 'a second time it changes nothing');
}

const spaces = fc.constantFrom('', ' ', '\n    ', '\r\n\t', '\n\n');
const quote = fc.constantFrom('"', "'");
const textPiece = fc.constantFrom(
  'text',
  '&lt;disk&gt;',
  '&amp;',
  '&#13;',
  '&#x41;',
  'ü',
  '大',
  '\u{1f600}',
  "it's",
  '"',
);

/** What may stand between libvirt's elements, and what looks like a disk and is none. */
const filler = fc.oneof(
  spaces,
  textPiece,
  fc.constantFrom(
    "<!-- <disk type='file'><source file='/c'/><target dev='vda'/></disk> -->",
    "<![CDATA[</disk><disk><target dev='vda'/>]]>",
    "<?tool <disk type='file'/> ?>",
    `<x:disk xmlns:x="urn:x" a='>' b="/>"><x:target dev="vda"/><source file='/x'/></x:disk>`,
    `<other attribute='type="file"'/>`,
    '<serial>S &amp; 1</serial>',
    "<iotune><total_iops_sec>5</total_iops_sec></iotune><boot order='1'/>",
  ),
);
const fillers = fc.array(filler, { maxLength: 4 }).map((pieces) => pieces.join(''));

const attribute = (name: string, value: string) =>
  fc.tuple(quote, fc.constantFrom('=', ' = ', '=\n')).map(([mark, equals]) => `${name}${equals}${mark}${value}${mark}`);

function anyElement(name: string, attributes: fc.Arbitrary<string>[], inner: fc.Arbitrary<string>) {
  return fc
    .tuple(
      fc.tuple(...attributes).chain((all) => fc.shuffledSubarray(all, { minLength: all.length })),
      inner,
      fc.boolean(),
    )
    .map(([all, content, long]) => {
      const start = `<${[name, ...all].join(' ')}`;
      return content === '' && !long ? `${start}/>` : `${start}>${content}</${name}>`;
    });
}

const parts = {
  driver: anyElement(
    'driver',
    [
      attribute('name', 'qemu'),
      attribute('type', 'qcow2'),
      attribute('discard_no_unref', 'on'),
      attribute('io', 'native'),
    ],
    fc.constantFrom('', "<metadata_cache><max_size unit='bytes'>1</max_size></metadata_cache>"),
  ),
  source: anyElement(
    'source',
    [attribute('file', '/old/a &amp; b'), attribute('startupPolicy', 'optional')],
    fc.constantFrom('', "<seclabel relabel='no'/>", '<!-- old -->'),
  ),
  backing: fc.constantFrom('<backingStore/>', "<backingStore type='file'><source file='/b'/></backingStore>"),
  auth: fc.constant("<auth username='u'><secret type='ceph' usage='s'/></auth>"),
};

function anyDisk(dev: string) {
  const children = fc
    .tuple(
      fc.tuple(parts.driver, parts.source, parts.backing, parts.auth).chain((all) => fc.shuffledSubarray(all)),
      anyElement('target', [attribute('dev', dev), attribute('bus', 'virtio')], fc.constant('')),
      fc.array(fillers, { minLength: 6, maxLength: 6 }),
    )
    .chain(([some, target, between]) =>
      fc
        .shuffledSubarray([...some, target], { minLength: some.length + 1 })
        .map((all) => all.map((child, index) => `${between[index] ?? ''}${child}`).join('') + (between.at(-1) ?? '')),
    );
  return anyElement(
    'disk',
    [attribute('type', 'file'), attribute('device', 'disk'), attribute('model', 'x>y')],
    children,
  );
}

const anyDomain = fc
  .tuple(fillers, fillers, fillers, anyDisk('vda'), fillers, anyDisk('vdb'), fillers)
  .map(
    ([a, b, c, first, d, second, e]) =>
      `<?xml version='1.0'?><!-- <domain> --><domain type='kvm'><name>n &amp; m</name>${a}<uuid>u</uuid>` +
      `<metadata>${b}</metadata><devices>${c}${first}${d}${second}${e}</devices></domain>\r\n`,
  );

describe('edits of any domain XML', () => {
  const disks = [...domainXmls].flatMap(([name, xml]) => parseDomain(xml).disks.map(({ dev }) => ({ name, xml, dev })));

  for (const [name, xml] of domainXmls) {
    it(`leave ${name} as it is, to the last character, where there is nothing to do`, () => {
      for (const text of [xml, xml.replaceAll('\n', '\r\n')]) assert.equal(withoutMetadata(text, 'urn:nobody'), text);
    });
  }

  it('withDiskImage changes nothing but the image of the one disk, in domains of every origin', () => {
    fc.assert(
      fc.property(fc.constantFrom(...disks), anyImage, fc.boolean(), ({ xml, dev }, image, crlf) =>
        assertEdited(crlf ? xml.replaceAll('\n', '\r\n') : xml, dev, image),
      ),
      { numRuns: 150 },
    );
  }).timeout(20_000);

  it('withDiskImage changes nothing but the image of the one disk, in whatever is well-formed', () => {
    fc.assert(
      fc.property(anyDomain, fc.constantFrom('vda', 'vdb'), anyImage, (xml, dev, image) =>
        assertEdited(xml, dev, image),
      ),
      { numRuns: 300 },
    );
  }).timeout(20_000);

  it('what is put in can be taken out again', () => {
    fc.assert(
      fc.property(anyDomain, (xml) => {
        const declared = withMetadata(xml, 'urn:mine', 'mine', "<a b='&lt;&apos;&quot;'><c/></a>");
        const trimmed = (text: string): string => text.replace(/\s+<\/metadata>/, '</metadata>');
        assert.equal(trimmed(withoutMetadata(declared, 'urn:mine')), trimmed(xml));
        const stopped = withErrorPolicy(xml, 'vda', { errorPolicy: 'stop', readErrorPolicy: 'stop' });
        assertWithinOneDisk(xml, stopped);
        assert.equal(parseDomain(stopped).disks[0]?.errorPolicy, 'stop');
        if (!stopped.includes("<driver name='qemu' error_policy"))
          assert.equal(withErrorPolicy(stopped, 'vda', { errorPolicy: null, readErrorPolicy: null }), xml);
      }),
      { numRuns: 100 },
    );
  }).timeout(20_000);
});
