import assert from 'node:assert/strict';
import { mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseImageUri, type Image } from '../../src/storage/image.ts';
import { kindOf } from '../../src/storage/image.ts';
import { hasCephTimeout, writeCephConfig } from '../../src/storage/ceph-config.ts';
import { weaknesses } from '../../src/storage/weaknesses.ts';
import { withoutSecrets } from './images.ts';

describe("Ceph's client configuration", () => {
  let folder: string;
  const own = (): string => join(folder, 'own.conf');

  before(async () => (folder = await mkdtemp(join(tmpdir(), 'virt-cdp-ceph-'))));
  after(() => rm(folder, { recursive: true }));

  it("is the administrator's with the time-outs that it has not", async () => {
    await writeFile(own(), '[global]\nfsid = 1\n[client.cdp]\nrados osd op timeout = 30\n');
    const path = await writeCephConfig(join(folder, 'run'), { config: own() }, 5_000);
    const text = await readFile(path, 'utf8');
    assert.match(text, /^\[global\]\nfsid = 1\n/);
    assert.match(text, /\[client\]\nrados_mon_op_timeout = 5\nclient_mount_timeout = 5\n$/);
    assert.doesNotMatch(text, /rados_osd_op_timeout/);
    assert.equal((await stat(path)).mode & 0o777, 0o644);
  });

  it('is one file for one content, and another for another', async () => {
    const run = join(folder, 'again');
    await writeFile(own(), '[global]\n');
    const paths = [
      await writeCephConfig(run, { config: own() }, 5_000),
      await writeCephConfig(run, { config: own() }, 5_000),
      await writeCephConfig(run, { config: own() }, 9_000),
    ];
    assert.equal(paths[0], paths[1]);
    assert.notEqual(paths[0], paths[2]);
    assert.equal((await readdir(run)).length, 2);
  });

  it('that is named must be there', async () => {
    await assert.rejects(writeCephConfig(folder, { config: '/none.conf' }, 1), { code: 'ceph-config-unreadable' });
  });

  it('tells whether a client would wait for ever', async () => {
    await writeFile(own(), '[client]\n; rados_osd_op_timeout = 5\n');
    assert.equal(await hasCephTimeout({ config: own() }), false);
    await writeFile(own(), '[client]\nrados_osd_op_timeout = 5\n');
    assert.equal(await hasCephTimeout({ config: own() }), true);
  });

  it('is what is weak about a primary without a time-out, and of no mirror', async () => {
    await writeFile(own(), '[client]\n');
    const { source } = parseImageUri('rbd:vms/web1');
    const image = { source: { ...source, config: own() }, format: 'raw' } as Image;
    const options = { deadlineMs: 1_000, opener: withoutSecrets };
    assert.match(String(await weaknesses(image, 'libvirt', options)), /'rbd:vms\/web1' has no time-out.*own\.conf/);
    assert.deepEqual(await weaknesses(image, 'agent', options), []);
    assert.deepEqual(await weaknesses(parseImageUri('nbd://h/e'), 'libvirt', options), []);
  });
});

describe('the name by which qemu-img creates an RBD image', () => {
  it('has what the image needs, and no character with a meaning of its own', () => {
    const { source } = parseImageUri('rbd:vms/a%3Ab');
    const login = { username: 'cdp', secret: { usage: 'x' } };
    const hosts = [
      { host: '10.0.0.1', port: 6789 },
      { host: 'fd00::1', port: null },
    ];
    const access = { objects: 'virt-cdp', timeoutMs: 1, cephConfig: '/run/c.conf' };
    assert.deepEqual(kindOf(source).creation({ ...source, login, hosts } as typeof source, access), {
      filename: String.raw`rbd:vms/a\:b:id=cdp:conf=\/run\/c.conf:mon_host=10.0.0.1\:6789,[fd00\:\:1]`,
      options: ['password-secret=virt-cdp-login'],
      path: null,
    });
  });
});
