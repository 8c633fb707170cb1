import assert from 'node:assert/strict';
import fc from 'fast-check';
import { UsageError } from '../../src/errors.ts';
import { imageName, parseImageUri, sameStorage, type Image, type Source } from '../../src/storage/image.ts';
import { anyImage } from './images.ts';

const tcp = (host: string, port: number, exportName: string): Source => ({
  kind: 'nbd',
  server: { host, port },
  exportName,
});
const unix = (socket: string, exportName: string): Source => ({ kind: 'nbd', server: { socket }, exportName });

describe('parseImageUri', () => {
  const good: [uri: string, source: Source, format: Image['format']][] = [
    ['/var/lib/images/web1.img', { kind: 'file', path: '/var/lib/images/web1.img' }, 'raw'],
    ['/a b,c:d%20#?.qcow2', { kind: 'file', path: '/a b,c:d%20#?.qcow2' }, 'qcow2'],
    ['/dev/vg0/web1', { kind: 'block', path: '/dev/vg0/web1' }, 'raw'],
    ['/dev/shm/web1.qcow2', { kind: 'file', path: '/dev/shm/web1.qcow2' }, 'qcow2'],
    ['file:/a%20b.qcow2', { kind: 'file', path: '/a b.qcow2' }, 'qcow2'],
    ['file:///a.img', { kind: 'file', path: '/a.img' }, 'raw'],
    ['FILE://localhost/a.img', { kind: 'file', path: '/a.img' }, 'raw'],
    ['file:/dev/sdb', { kind: 'file', path: '/dev/sdb' }, 'raw'],
    ['host_device:/srv/lun', { kind: 'block', path: '/srv/lun' }, 'raw'],
    ['nbd://storage1', tcp('storage1', 10809, ''), 'raw'],
    ['nbd://storage1/', tcp('storage1', 10809, ''), 'raw'],
    ['nbd://storage1:10810/web1/vda', tcp('storage1', 10810, 'web1/vda'), 'raw'],
    ['nbd://[fd00::1]:1/a%20b', tcp('fd00::1', 1, 'a b'), 'raw'],
    ['nbd://h/a/../b', tcp('h', 10809, 'a/../b'), 'raw'],
    ['nbd+unix:///web1?socket=/run/nbd.sock', unix('/run/nbd.sock', 'web1'), 'raw'],
    ['nbd+unix://?socket=/run/a%26b', unix('/run/a&b', ''), 'raw'],
  ];
  for (const [uri, source, format] of good) {
    it(`reads ${uri}`, () => assert.deepEqual(parseImageUri(uri), { source, format }));
  }

  it('takes the format that is asked for', () => {
    assert.equal(parseImageUri('/a.qcow2', { format: 'raw' }).format, 'raw');
    assert.equal(parseImageUri('nbd://h/e', { format: 'qcow2' }).format, 'qcow2');
  });

  const bad: [uri: string, says: RegExp][] = [
    ['', /neither an absolute path nor a URI/],
    ['images/web1.img', /neither an absolute path nor a URI/],
    ['./web1.img', /neither/],
    ['/var/lib/images/', /names a folder/],
    ['/a\nb', /control characters/],
    ['/a\ud800', /not valid Unicode/],
    ['ftp://h/x', /scheme 'ftp:' is not supported/],
    ['nbds://h/x', /scheme 'nbds:' is not supported/],
    ['toString:x', /scheme 'toString:' is not supported/],
    ['file:relative', /no absolute path/],
    ['file://server/share', /no absolute path/],
    ['file:/a?b', /no absolute path/],
    ['file:/a%zz', /does not begin an encoded character/],
    ['nbd:host:10809', /not of the form/],
    ['nbd://', /names no host/],
    ['nbd://:1/x', /names no host/],
    ['nbd://user@h/x', /not of the form/],
    ['nbd://h/x?y=z', /not of the form/],
    ['nbd://h:0/x', /port '0'/],
    ['nbd://h:65536/x', /port '65536'/],
    ['nbd://h:1e3/x', /port '1e3'/],
    ['nbd://h:/x', /port ''/],
    ['nbd://[1.2.3.4]/x', /not an IPv6 address/],
    ['nbd://a b/x', /neither a host name nor an IP/],
    ['nbd://h/%00', /control characters/],
    [`nbd://h/${'x'.repeat(4097)}`, /longer than 4096/],
    ['nbd+unix:///x', /no socket/],
    ['nbd+unix:///x?socket=', /socket is unusable/],
    ['nbd+unix:///x?socket=run/sock', /not an absolute path/],
    ['nbd+unix:///x?socket=/a&tls=1', /other parameters/],
    ['nbd+unix://host/x?socket=/a', /not of the form/],
  ];
  for (const [uri, says] of bad) {
    it(`refuses ${JSON.stringify(uri.slice(0, 40))} and says why and what to do`, () => {
      assert.throws(
        () => parseImageUri(uri),
        (error) => error instanceof UsageError && says.test(error.message) && error.hint !== undefined,
      );
    });
  }

  it('names the schemes that exist', () => {
    assert.throws(() => parseImageUri('gopher:x'), { hint: /file:, host_device:, nbd:, nbd\+unix:$/ });
  });

  it('throws nothing but UsageError', () => {
    const text = fc.oneof(
      fc.string({ unit: 'binary' }),
      fc
        .tuple(fc.constantFrom('file:', 'nbd://', 'nbd+unix://', 'nbd+unix:///?socket=', '/'), fc.string())
        .map((p) => p.join('')),
    );
    fc.assert(
      fc.property(text, (uri) => {
        try {
          parseImageUri(uri);
        } catch (error) {
          assert.ok(error instanceof UsageError);
        }
      }),
    );
  });
});

describe('imageName', () => {
  it('is read back as the same source', () => {
    fc.assert(fc.property(anyImage, (image) => assert.deepEqual(parseImageUri(imageName(image)).source, image.source)));
  });

  it('is as short as the user would write it', () => {
    for (const name of [
      '/a b.qcow2',
      '/dev/sdb',
      'file:/dev/sdb',
      'nbd://h/x',
      'nbd://[::1]:7/x',
      'nbd+unix:///?socket=/s',
    ]) {
      assert.equal(imageName(parseImageUri(name)), name);
    }
  });
});

describe('sameStorage', () => {
  const pairs: [a: string, b: string, same: boolean][] = [
    ['/a.img', 'file:/a.img', true],
    ['/x/../a.img', '//a.img', true],
    ['/dev/sdb', 'file:/dev/sdb', true],
    ['/a.img', '/b.img', false],
    ['nbd://localhost/x', 'nbd://127.0.0.1:10809/x', true],
    ['nbd://[::1]/x', 'nbd://LOCALHOST/x', true],
    ['nbd://[0:0:0:0:0:0:0:1]/x', 'nbd://localhost/x', true],
    ['nbd://[fd00::1]/x', 'nbd://[fd00:0::1]/x', true],
    ['nbd://h/x', 'nbd://h/y', false],
    ['nbd://h/x', 'nbd://h:1/x', false],
    ['nbd+unix:///x?socket=/a', 'nbd+unix:///x?socket=/./a', true],
    ['nbd+unix:///x?socket=/a', '/a', false],
  ];
  for (const [a, b, same] of pairs) {
    it(`says ${same ? 'yes' : 'no'} to ${a} and ${b}`, () => {
      assert.equal(sameStorage(parseImageUri(a), parseImageUri(b)), same);
      assert.equal(sameStorage(parseImageUri(b), parseImageUri(a)), same);
    });
  }

  it('does not look at the format', () => {
    assert.ok(sameStorage(parseImageUri('/a', { format: 'raw' }), parseImageUri('/a', { format: 'qcow2' })));
  });

  it('is true of any image and itself', () => {
    fc.assert(fc.property(anyImage, (image) => sameStorage(image, image)));
  });
});
