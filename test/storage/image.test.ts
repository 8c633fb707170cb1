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

const lun = (host: string, port: number, target: string, number: number, username?: string): Source => ({
  kind: 'iscsi',
  host,
  port,
  target,
  lun: number,
  initiator: null,
  login: username === undefined ? null : { username, secret: { usage: target } },
});
const rbd = (pool: string, namespace: string | null, image: string): Source => ({
  kind: 'rbd',
  pool,
  namespace,
  image,
  hosts: [],
  config: null,
  login: null,
});
const iqn = 'iqn.2026-01.org.example:web1';

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
    [`iscsi://storage1/${iqn}/1`, lun('storage1', 3260, iqn, 1), 'raw'],
    [`iscsi://cdp@[fd00::1]:3261/${iqn}/0`, lun('fd00::1', 3261, iqn, 0, 'cdp'), 'raw'],
    [`iscsi://10.0.0.9/${iqn}`, lun('10.0.0.9', 3260, iqn, 0), 'raw'],
    ['rbd:vms/web1', rbd('vms', null, 'web1'), 'raw'],
    ['rbd:vms/tenant/web%201', rbd('vms', 'tenant', 'web 1'), 'raw'],
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
    [`iscsi://h`, /not of the form/],
    [`iscsi://h/web1/1`, /does not begin with 'iqn/],
    [`iscsi://h/${iqn}/x`, /LUN 'x'/],
    [`iscsi://h/${iqn}/16384`, /LUN '16384'/],
    [`iscsi://h:0/${iqn}/1`, /port '0'/],
    [`iscsi://user%secret@h/${iqn}/1`, /a password can not be in it/],
    [`iscsi://user:secret@h/${iqn}/1`, /a password can not be in it/],
    ['rbd:vms', /not of the form/],
    ['rbd:a/b/c/d', /not of the form/],
    ['rbd:vms/web1:id=admin', /not of the form/],
    ['rbd:vms/web1%40snap', /image is unusable/],
  ];
  for (const [uri, says] of bad) {
    it(`refuses ${JSON.stringify(uri.slice(0, 40))} and says why and what to do`, () => {
      assert.throws(
        () => parseImageUri(uri),
        (error) => error instanceof UsageError && says.test(error.message) && error.hint !== undefined,
      );
    });
  }

  it('repeats no password that was in a URI', () => {
    assert.throws(
      () => parseImageUri(`iscsi://user%sesame@h/${iqn}/1`),
      (error) => error instanceof UsageError && !`${error.message}${error.hint ?? ''}`.includes('sesame'),
    );
  });

  it('names the schemes that exist', () => {
    assert.throws(() => parseImageUri('gopher:x'), {
      hint: /file:, host_device:, nbd:, nbds:, nbd\+unix:, iscsi:, rbd:$/,
    });
  });

  it('throws nothing but UsageError', () => {
    const text = fc.oneof(
      fc.string({ unit: 'binary' }),
      fc
        .tuple(
          fc.constantFrom('file:', 'iscsi://', 'rbd:', 'nbd://', 'nbd+unix://', 'nbd+unix:///?socket=', '/'),
          fc.string(),
        )
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

/** Without what takes XML to say. */
function sayable(source: Source): Source {
  if (source.kind === 'rbd') return { ...source, hosts: [], config: null, login: null };
  if (source.kind !== 'iscsi') return source;
  const login = source.login && { ...source.login, secret: { usage: source.target } };
  return { ...source, initiator: null, login };
}

describe('imageName', () => {
  it('is read back as the same source, as far as a URI can say it', () => {
    fc.assert(
      fc.property(anyImage, (image) => assert.deepEqual(parseImageUri(imageName(image)).source, sayable(image.source))),
    );
  });

  it('is as short as the user would write it', () => {
    for (const name of [
      '/a b.qcow2',
      '/dev/sdb',
      'file:/dev/sdb',
      'nbd://h/x',
      'nbd://[::1]:7/x',
      'nbd+unix:///?socket=/s',
      `iscsi://cdp@h/${iqn}/1`,
      'rbd:vms/web1',
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
    [`iscsi://localhost/${iqn}/1`, `iscsi://cdp@127.0.0.1:3260/${iqn.toUpperCase().replace('IQN', 'iqn')}/1`, true],
    [`iscsi://h/${iqn}/1`, `iscsi://h/${iqn}/10`, false],
    ['rbd:vms/web1', 'rbd:vms/web1', true],
    ['rbd:vms/web1', 'rbd:vms/a/web1', false],
  ];
  for (const [a, b, same] of pairs) {
    it(`says ${same ? 'yes' : 'no'} to ${a} and ${b}`, () => {
      assert.equal(sameStorage(parseImageUri(a), parseImageUri(b)), same);
      assert.equal(sameStorage(parseImageUri(b), parseImageUri(a)), same);
    });
  }

  it('tells Ceph clusters apart by their monitors, in any order', () => {
    const at = (...hosts: string[]): Image => ({
      source: {
        ...(rbd('vms', null, 'web1') as Extract<Source, { kind: 'rbd' }>),
        hosts: hosts.map((host) => ({ host, port: null })),
      },
      format: 'raw',
    });
    assert.ok(sameStorage(at('a', 'B'), at('b', 'a')));
    assert.ok(!sameStorage(at('a'), at('c')));
    assert.ok(!sameStorage(at('a'), at()));
  });

  it('does not look at the format', () => {
    assert.ok(sameStorage(parseImageUri('/a', { format: 'raw' }), parseImageUri('/a', { format: 'qcow2' })));
  });

  it('is true of any image and itself', () => {
    fc.assert(fc.property(anyImage, (image) => sameStorage(image, image)));
  });
});
