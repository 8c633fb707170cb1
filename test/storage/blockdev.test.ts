import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { CdpError } from '../../src/errors.ts';
import { blockdevLayers, imageOptions } from '../../src/storage/blockdev.ts';
import { parseImageUri } from '../../src/storage/image.ts';

const names = { storageNode: 'cdp-vda-mirror-storage', formatNode: 'cdp-vda-mirror' };
const access = { objects: 'cdp-vda-mirror-storage', timeoutMs: 5_000, cephConfig: null };

describe('blockdevLayers', () => {
  it('puts raw over a file, unprobed and past the page cache', () => {
    const common = {
      'read-only': false,
      'auto-read-only': false,
      discard: 'unmap',
      cache: { direct: true, 'no-flush': false },
    };
    assert.deepEqual(blockdevLayers(parseImageUri('/a.img'), access, names), [
      { driver: 'file', filename: '/a.img', aio: 'threads', 'node-name': 'cdp-vda-mirror-storage', ...common },
      { driver: 'raw', file: 'cdp-vda-mirror-storage', 'node-name': 'cdp-vda-mirror', ...common },
    ]);
  });

  const shapes: [uri: string, sizeBytes: number | undefined, layers: string[]][] = [
    ['/a.img', undefined, ['file cdp-vda-mirror-storage', 'raw cdp-vda-mirror']],
    ['/dev/vg/a', 512, ['host_device cdp-vda-mirror-storage', 'raw cdp-vda-mirror 512']],
    ['/a.qcow2', undefined, ['file cdp-vda-mirror-storage', 'qcow2 cdp-vda-mirror']],
    ['/a.qcow2', 1024, ['file cdp-vda-mirror-storage', 'raw cdp-vda-mirror 1024']],
    ['nbd://h/e', 1024, ['nbd cdp-vda-mirror-storage', 'raw cdp-vda-mirror 1024']],
    ['iscsi://h/iqn.2026-01.org.example:a/1', 1024, ['iscsi cdp-vda-mirror-storage', 'raw cdp-vda-mirror 1024']],
    ['rbd:vms/a', undefined, ['rbd cdp-vda-mirror-storage', 'raw cdp-vda-mirror']],
  ];
  for (const [uri, sizeBytes, layers] of shapes) {
    it(`makes ${layers.join(', ')} of ${uri}`, () => {
      const made = blockdevLayers(parseImageUri(uri), access, {
        ...names,
        ...(sizeBytes !== undefined && { sizeBytes }),
      });
      const described = made.map((layer) =>
        [layer.driver, layer['node-name'], ...('size' in layer ? [String(layer.size)] : [])].join(' '),
      );
      assert.deepEqual(described, layers);
    });
  }

  it('goes by a descriptor where QEMU was handed one', () => {
    const first = (uri: string): unknown => {
      const [storage] = blockdevLayers(parseImageUri(uri), access, { ...names, descriptor: 'handed' });
      return storage !== undefined && 'filename' in storage
        ? storage.filename
        : (storage as { server?: unknown }).server;
    };
    assert.equal(first('/a.qcow2'), 'handed');
    assert.equal(first('/dev/vg/a'), 'handed');
    assert.deepEqual(first('nbd+unix:///e?socket=/s'), { type: 'fd', str: 'handed' });
  });

  it('never opens a backing file, and never lets an NBD client reconnect by itself', () => {
    assert.ok(blockdevLayers(parseImageUri('/a.qcow2'), access, names).some((layer) => 'backing' in layer));
    assert.ok(
      blockdevLayers(parseImageUri('nbd://h'), access, names).some(
        (layer) => 'export' in layer && layer['reconnect-delay'] === 0,
      ),
    );
  });

  it('names the objects with the secrets of a login, and never lets an iSCSI request wait for ever', () => {
    const [storage] = blockdevLayers(parseImageUri('iscsi://cdp@h/iqn.2026-01.org.example:a/1'), access, names);
    const {
      portal,
      target,
      lun,
      timeout,
      user,
      'password-secret': secret,
    } = storage as unknown as Record<string, unknown>;
    assert.deepEqual(
      { portal, target, lun, timeout, user, secret },
      {
        portal: 'h:3260',
        target: 'iqn.2026-01.org.example:a',
        lun: 1,
        timeout: 5,
        user: 'cdp',
        secret: 'cdp-vda-mirror-storage-login',
      },
    );
  });

  it('names the objects with the passphrase and the certificates', () => {
    const encryption = { secret: { usage: 'web1' } };
    const key = 'cdp-vda-mirror-storage-luks';
    const [, luks] = blockdevLayers({ ...parseImageUri('/a.img'), encryption }, access, names);
    assert.deepEqual([luks?.driver, luks && 'key-secret' in luks && luks['key-secret']], ['luks', key]);
    const [, qcow2] = blockdevLayers({ ...parseImageUri('/a.qcow2'), encryption }, access, names);
    assert.deepEqual(qcow2 && 'encrypt' in qcow2 && qcow2.encrypt, { format: 'luks', 'key-secret': key });
    const [, part] = blockdevLayers({ ...parseImageUri('/a.img'), encryption }, access, { ...names, sizeBytes: 512 });
    assert.equal(part?.driver, 'raw');
    assert.match(JSON.stringify(part), /"file":\{"driver":"luks",.*"node-name":"cdp-vda-mirror-luks"/);
    const [nbd] = blockdevLayers(parseImageUri('nbds://h/e'), access, names);
    assert.equal(nbd && 'tls-creds' in nbd && nbd['tls-creds'], 'cdp-vda-mirror-storage-tls');
  });

  it('opens the backing file that is named, and no other', () => {
    const backing = (more: object): unknown =>
      JSON.parse(JSON.stringify(blockdevLayers(parseImageUri('/a.qcow2'), access, { ...names, ...more })[1]));
    assert.equal((backing({}) as { backing: unknown }).backing, null);
    assert.equal((backing({ backing: 'libvirt-2-format' }) as { backing: unknown }).backing, 'libvirt-2-format');
  });

  it('hands caching down to every layer, and read-only to those that no job may ask to write', () => {
    const [storage, ...others] = blockdevLayers(parseImageUri('/a.qcow2'), access, {
      ...names,
      sizeBytes: 512,
      readOnly: true,
      direct: false,
    });
    assert.deepEqual(
      [storage?.['read-only'], storage?.['auto-read-only'], storage?.cache.direct],
      [false, true, false],
    );
    for (const layer of others) assert.deepEqual([layer['read-only'], layer.cache.direct], [true, false]);
  });

  it('refuses a size that QEMU would refuse', () => {
    for (const sizeBytes of [0, -512, 1000, NaN, 2 ** 60]) {
      assert.throws(() => blockdevLayers(parseImageUri('/a'), access, { ...names, sizeBytes }), CdpError);
    }
  });

  it('is taken by QEMU, for every shape', async function () {
    const folder = await mkdtemp(join(tmpdir(), 'virt-cdp-blockdev-'));
    try {
      const uris = [join(folder, 'a, b:c.img'), join(folder, 'a.qcow2')];
      for (const uri of uris) {
        const image = parseImageUri(uri);
        spawnSync('qemu-img', ['create', '-q', '-f', image.format, uri, '4M']);
        for (const more of [{}, { sizeBytes: 2 ** 20 }, { readOnly: true }]) {
          const nodes = nodesInQemu(blockdevLayers(image, access, { ...names, ...more, direct: false }));
          assert.equal(nodes.get('cdp-vda-mirror'), 'sizeBytes' in more ? 2 ** 20 : 4 * 2 ** 20);
        }
      }
    } finally {
      await rm(folder, { recursive: true });
    }
  });
});

/** Adds the layers to a QEMU without a machine; gives the nodes and their sizes. */
function nodesInQemu(layers: object[]): Map<string, number> {
  const commands = [
    { execute: 'qmp_capabilities' },
    ...layers.map((layer) => ({ execute: 'blockdev-add', arguments: layer })),
    { execute: 'query-named-block-nodes', arguments: { flat: true } },
    ...layers.toReversed().map((layer) => ({
      execute: 'blockdev-del',
      arguments: { 'node-name': (layer as { 'node-name': string })['node-name'] },
    })),
    { execute: 'quit' },
  ];
  const qemu = spawnSync('qemu-system-x86_64', ['-M', 'none', '-nodefaults', '-display', 'none', '-qmp', 'stdio'], {
    input: commands.map((command) => JSON.stringify(command)).join('\n'),
    encoding: 'utf8',
    timeout: 9000,
  });
  assert.doesNotMatch(qemu.stdout, /"error"/);
  const answer = qemu.stdout.split('\n').find((line) => line.includes('"node-name"')) ?? '{"return": []}';
  const { return: nodes } = JSON.parse(answer) as {
    return: { 'node-name': string; image: { 'virtual-size': number } }[];
  };
  return new Map(nodes.map((node) => [node['node-name'], node.image['virtual-size']]));
}

describe('imageOptions', () => {
  it('is one json: filename, whatever the path holds', () => {
    assert.equal(
      imageOptions(parseImageUri('/a,"b".qcow2'), access),
      'json:{"driver":"qcow2","file":{"driver":"file","filename":"/a,\\"b\\".qcow2","aio":"threads",' +
        '"cache":{"direct":true,"no-flush":false}},"cache":{"direct":true,"no-flush":false}}',
    );
  });
});
