import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { imageFromDiskXml } from '../../src/domain/disk-image.ts';
import { CdpError } from '../../src/errors.ts';
import type { LibvirtClient } from '../../src/libvirt/client.ts';
import { LibvirtError, libvirtErrorCode } from '../../src/libvirt/errors.ts';
import { ImageOpener } from '../../src/storage/opener.ts';
import { runTool } from '../../src/storage/run-tool.ts';
import { readLibvirtSecret, secretObject, type NeededSecret } from '../../src/storage/secrets.ts';
import { parseImageUri } from '../../src/storage/image.ts';
import { createImage, imageSize, probeImage } from '../../src/storage/tools.ts';

const value = Buffer.from('correct horse battery staple');

const lun = imageFromDiskXml(
  `<disk type='network'><source protocol='iscsi' name='iqn.2026-01.org.example:web1/1'><host name='127.0.0.1' port='1'/>` +
    `<auth username='cdp'><secret type='iscsi' usage='web1'/></auth></source></disk>`,
);

function openerOf(readSecret: (secret: NeededSecret) => Promise<Buffer>): ImageOpener {
  const certificates = (): Promise<string> => Promise.resolve('/pki');
  return new ImageOpener({ readSecret, timeoutMs: () => 1_000, folder: tmpdir(), certificates });
}

describe('secrets', function () {
  this.timeout(30_000);

  it('are handed to qemu-img encrypted, with the key in a file that has no name', async function () {
    // qemu-img measures how fast it derives keys, and fails if its processor's clock has not ticked meanwhile.
    this.retries(5);
    const folder = await mkdtemp(join(tmpdir(), 'virt-cdp-secret-'));
    const opener = openerOf(() => Promise.resolve(value));
    const keyFolders = async (): Promise<string[]> =>
      (await readdir(tmpdir())).filter((name) => /^virt-cdp-\w{6}$/.test(name));
    const before = await keyFolders();
    try {
      const path = join(folder, 'luks');
      const secrets = opener.toolSecrets([{ id: 's', value }])!;
      assert.deepEqual(await keyFolders(), before);
      assert.ok(!secrets.args.some((arg) => arg.includes(String(value)) || arg.includes(value.toString('base64'))));
      const options = ['-o', 'key-secret=s,iter-time=10'];
      const created = await runTool(
        'qemu-img',
        ['create', '-q', '-f', 'luks', ...secrets.args, ...options, path, '1M'],
        {
          deadlineMs: 30_000,
          thirdFd: secrets.fd,
        },
      );
      assert.equal(created.status, 0, created.stderr);
      const opens = (password: string): number | null =>
        spawnSync('qemu-io', [
          ...['--object', `secret,id=p,data=${password}`, '-r', '-c', 'read 0 512', '--image-opts'],
          `driver=luks,key-secret=p,file.filename=${path}`,
        ]).status;
      assert.deepEqual([opens(String(value)), opens('wrong')], [0, 1]);
    } finally {
      opener.close();
      await rm(folder, { recursive: true });
    }
    // qemu-img measures this machine's speed by a clock that may not have ticked meanwhile, and fails then.
  }).retries(5);

  it('encrypt an image that is made with one', async function () {
    // A key is made to take two seconds to derive.
    this.timeout(90_000);
    const folder = await mkdtemp(join(tmpdir(), 'virt-cdp-secret-'));
    const opener = openerOf(() => Promise.resolve(value));
    const options = { deadlineMs: 80_000, opener };
    try {
      const path = join(folder, 'a.qcow2');
      const image = { ...parseImageUri(path), encryption: { secret: { usage: 'web1' } } };
      await createImage(image, 2 ** 20, options);
      assert.equal(await imageSize(image, options), 2 ** 20);
      assert.deepEqual(await probeImage(image, options), { ok: true });
      const { stdout } = spawnSync('qemu-img', ['info', '--output=json', path], { encoding: 'utf8' });
      assert.equal((JSON.parse(stdout) as { encrypted?: boolean }).encrypted, true);
    } finally {
      opener.close();
      await rm(folder, { recursive: true });
    }
  });

  it('are encrypted anew each time', () => {
    const key = { id: 'masterKey0', bytes: Buffer.alloc(32, 1) };
    const [a, b] = [1, 2].map(() => secretObject({ id: 's', value }, key));
    assert.notEqual(a?.iv, b?.iv);
    assert.notEqual(a?.data, b?.data);
  });

  it('that are needed for an image come from the secret that its XML names', async () => {
    const read: NeededSecret[] = [];
    const opener = openerOf((secret) => {
      read.push(secret);
      return Promise.resolve(value);
    });
    const { access, secrets } = await opener.prepare(lun, 'cdp-vda-mirror-storage');
    assert.deepEqual(read, [{ type: 'iscsi', name: { usage: 'web1' } }]);
    assert.deepEqual(secrets, [{ id: 'cdp-vda-mirror-storage-login', value }]);
    assert.equal(access.objects, 'cdp-vda-mirror-storage');
  });

  it('that can not be read make a copy that does not answer, not an error', async () => {
    const why = new CdpError({ code: 'secret-missing', message: 'gone' });
    const opener = openerOf(() => Promise.reject(why));
    assert.deepEqual(await probeImage(lun, { deadlineMs: 1_000, opener }), { ok: false, reason: 'gone', late: false });
  });

  describe('of libvirt', () => {
    const failing = (code: number): LibvirtClient => {
      const fail = (): Promise<never> =>
        Promise.reject(new LibvirtError('secretGetValue', { code, domain: 0, level: 2, text: 'no' }));
      return { secretValueByUuid: fail, secretValueByUsage: fail } as unknown as LibvirtClient;
    };
    const secret: NeededSecret = { type: 'ceph', name: { usage: 'client.vms' } };

    it('say what to do where they are private or missing', async () => {
      await assert.rejects(readLibvirtSecret(failing(libvirtErrorCode.invalidSecret), secret), {
        code: 'secret-private',
        message: /'client\.vms' can't be read: it is private/,
        hint: /private='no'/,
      });
      await assert.rejects(readLibvirtSecret(failing(libvirtErrorCode.noSecret), secret), {
        code: 'secret-missing',
        hint: /secret-set-value/,
      });
    });

    it('leave other failures of libvirt as they are', async () => {
      await assert.rejects(readLibvirtSecret(failing(libvirtErrorCode.noSupport), secret), LibvirtError);
    });
  });
});
