import assert from 'node:assert/strict';
import { mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
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

  /** The settings of an image's client that are written down, by name. */
  async function written(text: string, username = 'cdp'): Promise<Record<string, string>> {
    await writeFile(own(), text);
    const login = { username, secret: { usage: 'x' } };
    const path = await writeCephConfig(join(folder, 'run'), { config: own(), login }, 5_000);
    assert.equal((await stat(path)).mode & 0o777, 0o644);
    const [heading, ...lines] = (await readFile(path, 'utf8')).trimEnd().split('\n');
    assert.equal(heading, '[global]');
    return Object.fromEntries(lines.map((line) => line.split(' = ') as [string, string]));
  }

  const timeouts = { rados_osd_op_timeout: '5', rados_mon_op_timeout: '5', client_mount_timeout: '5' };

  it("is what the administrator's says to this client, the most special section first", async () => {
    const mixed = `[client]
      log file = /b ; why
[global]
      fsid=1 # the cluster
      mon  host = 10.0.0.1,\\
10.0.0.2
      log_file = "/a"
      debug ms = 0
[client.cdp]
      log file = '/c \\# d'
[client.other]
      log file = /other
      debug ms = 9
[osd]
      debug ms = 7
[global]
      debug_ms = 1`;
    const all = { ...timeouts, fsid: '1', mon_host: '10.0.0.1,10.0.0.2', debug_ms: '1' };
    assert.deepEqual(await written(mixed), { ...all, log_file: String.raw`'/c \# d'` });
    assert.deepEqual(await written(mixed, 'admin'), { ...all, log_file: '/b' });
  });

  it('has the monitors that have sections of their own', async () => {
    const monitors = '[mon.a]\nmon addr = 10.0.0.1\nkeyring = /k\n[mon]\nmon addr = 10.0.0.9\n[mon.b]\nhost = b\n';
    const { '[mon.a]': heading, ...options } = await written(`[global]\nfsid = 1\n${monitors}`);
    assert.equal(heading, undefined);
    assert.deepEqual(options, { ...timeouts, fsid: '1', mon_addr: '10.0.0.1' });
  });

  it("has the agent's time-outs, wherever and whatever others there are", async () => {
    for (const section of ['global', 'client', 'client.cdp', 'client.other', 'osd'])
      for (const value of ['0', '300', '2 h'])
        assert.deepEqual(await written(`[${section}]\nrados osd op timeout = ${value}\n`), timeouts);
  });

  it('has no password of whatever kind, which everybody could read', async () => {
    const secrets = `[global]
key = AQBsecret==
rgw keystone admin password = hidden
rgw_crypt_default_encryption_key = hidden
[client]
 key  = "AQBother=="
 some_token=hidden ; a key = hidden
 keyring = /etc/ceph/$name.keyring
[client.cdp]
key=AQBown==
`;
    assert.deepEqual(await written(secrets), { ...timeouts, keyring: '/etc/ceph/$name.keyring' });
  });

  it('is refused where the image would be opened by a key that is in it', async () => {
    await writeFile(own(), '[client.admin]\nkey = AQBsecret==\n');
    const path = (config: string): Promise<string> =>
      writeCephConfig(join(folder, 'run'), { config, login: null }, 5_000);
    await assert.rejects(path(own()), { code: 'ceph-key-in-config', hint: /libvirt secret/ });
    await writeFile(own(), '[client.other]\nkey = AQBsecret==\n');
    await path(own());
  });

  it('is one file for one content, and another for another', async () => {
    const run = join(folder, 'again');
    await writeFile(own(), '[global]\n');
    const paths = [
      await writeCephConfig(run, { config: own(), login: null }, 5_000),
      await writeCephConfig(run, { config: own(), login: null }, 5_000),
      await writeCephConfig(run, { config: own(), login: null }, 9_000),
    ];
    assert.equal(paths[0], paths[1]);
    assert.notEqual(paths[0], paths[2]);
    assert.deepEqual(
      paths.map((path) => basename(path)),
      ['own.conf', 'own.conf', 'own.conf'],
    );
    assert.equal((await readdir(run)).length, 2);
  });

  it('that is named must be there', async () => {
    await assert.rejects(writeCephConfig(folder, { config: '/none.conf', login: null }, 1), {
      code: 'ceph-config-unreadable',
    });
  });

  const ends: Record<string, boolean> = {
    '[client]\n; rados_osd_op_timeout = 5': false,
    '[client]\nrados_osd_op_timeout = 5': true,
    '[global]\n rados  osd op\ttimeout= 5s ; seconds': true,
    '[client.cdp]\nrados_osd_op_timeout = "1m 30 sec"': true,
    '[global]\nrados-osd-op-timeout = 5': false,
    '[client.other]\nrados_osd_op_timeout = 5': false,
    '[osd]\nrados_osd_op_timeout = 5': false,
    '[ client ]\nrados_osd_op_timeout = 5': false,
    '[client]\nrados_osd_op_timeout = 0': false,
    '[client]\nrados_osd_op_timeout =': false,
    '[client]\nrados_osd_op_timeout = 0.5': false,
    '[client]\nrados_osd_op_timeout = 500ms': false,
    '[client]\nrados_osd_op_timeout = never': false,
    '[client.cdp]\nrados osd op timeout = 0\n[client]\nrados_osd_op_timeout = 5': false,
    '[client.cdp]\nrados_osd_op_timeout = 5\n[global]\nrados_osd_op_timeout = 0': true,
    '[client]\nrados_osd_op_timeout = 5\nrados osd op timeout = 0': false,
  };
  for (const [text, doesEnd] of Object.entries(ends)) {
    it(`tells whether a client would wait for ever: ${JSON.stringify(text)}`, async () => {
      await writeFile(own(), `${text}\n`);
      const login = { username: 'cdp', secret: { usage: 'x' } };
      assert.equal(await hasCephTimeout({ config: own(), login }), doesEnd);
      assert.equal(await hasCephTimeout({ config: '/none.conf', login }), false);
    });
  }

  it('is what is weak about a primary without a time-out, and of no mirror', async () => {
    await writeFile(own(), '[client]\n');
    const { source } = parseImageUri('rbd:vms/web1');
    const image = { source: { ...source, config: own() }, format: 'raw' } as Image;
    const options = { deadlineMs: 1_000, opener: withoutSecrets };
    const [doubt] = await weaknesses(image, 'libvirt', options);
    assert.match(doubt?.what ?? '', /'rbd:vms\/web1' has no time-out.*own\.conf/);
    assert.deepEqual(await weaknesses(image, 'agent', options), []);
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
