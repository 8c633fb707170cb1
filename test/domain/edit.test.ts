import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DOMParser, type Node } from '@xmldom/xmldom';
import fc from 'fast-check';
import { CdpError, UsageError } from '../../src/errors.ts';
import { DECLARATION_KEY, DECLARATION_URI } from '../../src/domain/declaration.ts';
import { parseDomain } from '../../src/domain/domain.ts';
import { withDiskImage, withErrorPolicy, withMetadata, withoutMetadata } from '../../src/domain/edit.ts';
import type { Image } from '../../src/domain/image.ts';
import { STATUS_URI } from '../../src/domain/live-status.ts';
import { parseImageUri } from '../../src/storage/image.ts';
import { anyImage } from '../storage/images.ts';
import { domainXml, domainXmls, virsh } from './fixtures.ts';

/** Everything in a document, a line each, in order; text that is only white space is left out. */
function lines(xml: string): string[] {
  const found: string[] = [];
  const visit = (node: Node, path: string): void => {
    const here = `${path}/${node.nodeName}`;
    const attributes =
      'attributes' in node ? Array.from(node.attributes as Iterable<{ name: string; value: string }>) : [];
    const text = node.nodeValue ?? '';
    if (node.nodeName !== '#text' || text.trim() !== '') found.push(`${here} ${JSON.stringify(text)}`);
    found.push(...attributes.map(({ name, value }) => `${here} @${name}=${JSON.stringify(value)}`).sort());
    for (const child of Array.from(node.childNodes)) visit(child, here);
  };
  visit(new DOMParser().parseFromString(xml, 'text/xml'), '');
  return found;
}

/** What an edit took away and what it put in, sorted, by the end of each line's path. */
function difference(before: string, after: string): { gone: string[]; come: string[] } {
  const [old, now] = [lines(before), lines(after)];
  const short = (line: string): string => line.replace(/^.*?\/(disk|metadata)(?=[/ ])/, '$1');
  const without = (list: string[], others: string[]): string[] => {
    const rest = [...others];
    return list.filter((line) => {
      const at = rest.indexOf(line);
      if (at >= 0) rest.splice(at, 1);
      return at < 0;
    });
  };
  return { gone: without(old, now).map(short).sort(), come: without(now, old).map(short).sort() };
}

describe('edits of a domain XML', () => {
  it('keep the order of all that stays', () => {
    for (const [name, xml] of domainXmls) {
      const unchanged = withoutMetadata(xml, 'urn:nobody');
      assert.deepEqual(lines(unchanged), lines(xml), name);
    }
  });

  it('keep any character that XML allows', () => {
    const odd = '\ufffd \u{1f600} \u0085 \u2028';
    const xml = domainXml('network.xml').replace('Größe', odd);
    assert.deepEqual(lines(withoutMetadata(xml, 'urn:nobody')), lines(xml));
    assert.ok(withoutMetadata(xml, 'urn:nobody').includes(odd));
  });

  it('withDiskImage changes the type, the source and the format of one disk', () => {
    const xml = domainXml('live.xml');
    assert.deepEqual(
      difference(xml, withDiskImage(xml, 'vda', parseImageUri('nbd://storage1/db', { format: 'qcow2' }))),
      {
        gone: [
          'disk @type="block"',
          'disk/backingStore ""',
          'disk/driver @type="raw"',
          'disk/source @dev="/dev/vg0/db"',
          'disk/source @index="3"',
        ],
        come: [
          'disk @type="network"',
          'disk/driver @type="qcow2"',
          'disk/source @name="db"',
          'disk/source @protocol="nbd"',
          'disk/source/host ""',
          'disk/source/host @name="storage1"',
          'disk/source/host @port="10809"',
        ],
      },
    );
  });

  it('withDiskImage drops a backing chain, and what the old source alone had', () => {
    const xml = withDiskImage(domainXml('live.xml'), 'sda', parseImageUri('/new.qcow2'));
    assert.deepEqual(parseDomain(xml).disks[1]?.image, parseImageUri('/new.qcow2'));
    assert.ok(!/<backingStore type=/.test(xml));
    assert.ok(!xml.includes('relabel="no"'));
    const [, , , rbd] = parseDomain(withDiskImage(domainXml('network.xml'), 'vde', parseImageUri('/new.img'))).disks;
    assert.equal(rbd?.unsupported, null);
    const luks = parseDomain(withDiskImage(domainXml('odd-disks.xml'), 'vdj', parseImageUri('/new.img'))).disks[9];
    assert.equal(luks?.unsupported, null);
  });

  it('withDiskImage gives any disk any image, and nothing else another', () => {
    const disks = [...domainXmls.values()].flatMap((xml) =>
      parseDomain(xml).disks.map((disk, index) => ({ xml, dev: disk.dev, index })),
    );
    fc.assert(
      fc.property(fc.constantFrom(...disks), anyImage, ({ xml, dev, index }, image) => {
        const before = parseDomain(xml);
        const after = parseDomain(withDiskImage(xml, dev, image));
        assert.deepEqual(after.disks[index]?.image, image);
        before.disks.splice(index, 1);
        after.disks.splice(index, 1);
        assert.deepEqual(after, before);
      }),
      { numRuns: 60 },
    );
  });

  it('withErrorPolicy sets, replaces and takes away', () => {
    const xml = domainXml('odd-disks.xml');
    const stop = { errorPolicy: 'stop', readErrorPolicy: 'stop' };
    const stopped = withErrorPolicy(xml, 'vda', stop);
    assert.deepEqual(difference(xml, stopped), {
      gone: [],
      come: [
        'disk/driver ""',
        'disk/driver @error_policy="stop"',
        'disk/driver @name="qemu"',
        'disk/driver @rerror_policy="stop"',
      ],
    });
    const live = domainXml('live.xml');
    assert.deepEqual(difference(live, withErrorPolicy(live, 'sda', { errorPolicy: null, readErrorPolicy: 'report' })), {
      gone: ['disk/driver @error_policy="stop"'],
      come: ['disk/driver @rerror_policy="report"'],
    });
    assert.deepEqual(lines(withErrorPolicy(live, 'vda', stop)), lines(live));
  });

  it('withoutMetadata takes away one namespace and leaves the others', () => {
    const xml = domainXml('live.xml');
    const stripped = withoutMetadata(xml, STATUS_URI);
    assert.deepEqual(parseDomain(stripped).declaration, parseDomain(xml).declaration);
    const { gone, come } = difference(xml, stripped);
    assert.deepEqual(come, []);
    assert.ok(gone.length > 0 && gone.every((line) => line.startsWith('metadata/cdp-state:')));
  });

  it('withMetadata replaces its own and makes <metadata> where there is none', () => {
    const element = "<protection policy='strict'/>";
    for (const name of ['live.xml', 'network.xml']) {
      const once = withMetadata(domainXml(name), DECLARATION_URI, DECLARATION_KEY, element);
      assert.equal(once.split('<cdp:protection').length, 2);
      assert.deepEqual(lines(withMetadata(once, DECLARATION_URI, DECLARATION_KEY, element)), lines(once));
    }
  });

  it('say which disks there are, if one is not', () => {
    assert.throws(() => withDiskImage(domainXml('live.xml'), 'vdz', parseImageUri('/a')), {
      code: 'disk-not-found',
      hint: 'its disks are vda, sda, sdb',
    });
    // A <disk> in other people's metadata is none of the domain's.
    const only = domainXml('virt-install.xml').replace(
      '<libosinfo:os ',
      "<disk xmlns=''><target dev='vdq'/></disk><libosinfo:os ",
    );
    assert.throws(() => withErrorPolicy(only, 'vdq', { errorPolicy: null, readErrorPolicy: null }), {
      code: 'disk-not-found',
    });
  });

  it('throw nothing but CdpError at what is no XML', () => {
    for (const xml of ['', '<', '<a>&lol;</a>', '<a b=1/>', '<a/><b/>', 'text']) {
      assert.throws(() => withoutMetadata(xml, 'urn:x'), UsageError);
    }
    fc.assert(
      fc.property(fc.string({ unit: 'binary' }), fc.nat(), (text, at) => {
        const xml = domainXml('network.xml');
        try {
          withDiskImage(xml.slice(0, at % xml.length) + text + xml.slice(at % xml.length), 'vda', parseImageUri('/a'));
        } catch (error) {
          assert.ok(error instanceof CdpError, String(error));
        }
      }),
    );
  });

  it('give XML that libvirt takes', function () {
    const folder = mkdtempSync(join(tmpdir(), 'virt-cdp-edit-'));
    try {
      const images: Image[] = [
        ...['/a & b.qcow2', '/dev/sdb', 'nbd://[::1]/e', 'nbd+unix:///e?socket=/s'].map((uri) => parseImageUri(uri)),
      ];
      for (const image of images) {
        const stop = { errorPolicy: 'stop', readErrorPolicy: 'stop' };
        const xml = withErrorPolicy(withDiskImage(domainXml('live.xml'), 'sda', image), 'sda', stop);
        const file = join(folder, 'domain.xml');
        writeFileSync(file, xml);
        const result = virsh(`define --validate ${file}`, 'dumpxml --inactive "db & more"');
        if (result === null) return this.skip();
        assert.equal(result.stderr, '');
        assert.deepEqual(parseDomain(result.stdout.slice(result.stdout.indexOf('<domain'))).disks[1]?.image, image);
      }
    } finally {
      rmSync(folder, { recursive: true });
    }
  });
});
