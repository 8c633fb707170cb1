import assert from 'node:assert/strict';
import { createDecipheriv, randomBytes } from 'node:crypto';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { withObjects } from '../../src/graph/secrets.ts';
import type { SecretObject } from '../../src/storage/secrets.ts';
import { FakeQemu, Refusal } from '../qmp/fake-qemu.ts';

const value = Buffer.from('sesame-open-42');
const secrets = [{ id: 'cdp-vda-mirror-storage-login', value }];

describe('withObjects', () => {
  const keyBytes = randomBytes(32);
  let folder: string;
  let keyFile: string;

  before(async () => {
    folder = await mkdtemp(join(tmpdir(), 'virt-cdp-master-'));
    keyFile = join(folder, 'master-key.aes');
    await writeFile(keyFile, keyBytes);
  });
  after(() => rm(folder, { recursive: true }));

  const notThere = (): never => {
    throw new Refusal("object 'x' not found");
  };

  it("gives QEMU a secret that only the domain's master key opens, and takes it away again", async () => {
    let added: SecretObject | undefined;
    const qemu = new FakeQemu({
      'qom-get': ({ path, property }) => {
        assert.deepEqual([path, property], ['/objects/masterKey0', 'file']);
        return keyFile;
      },
      'object-add': (object) => {
        added = object as unknown as SecretObject;
        return {};
      },
      'object-del': () => (added === undefined ? notThere() : {}),
    });
    const result = await withObjects(qemu.monitor, { secrets, certificates: null }, () =>
      Promise.resolve(qemu.sent.at(-1)),
    );
    assert.equal(result, 'object-add');
    assert.deepEqual(qemu.sent, ['qom-get', 'object-del', 'object-add', 'object-del']);
    const { data, iv, keyid, id } = added!;
    assert.deepEqual([id, keyid], ['cdp-vda-mirror-storage-login', 'masterKey0']);
    const decipher = createDecipheriv('aes-256-cbc', keyBytes, Buffer.from(iv, 'base64'));
    assert.deepEqual(Buffer.concat([decipher.update(data, 'base64'), decipher.final()]), value);
  });

  it('takes the secret away when the image can not be opened', async () => {
    const qemu = new FakeQemu({ 'qom-get': () => keyFile });
    await assert.rejects(
      withObjects(qemu.monitor, { secrets, certificates: null }, () => Promise.reject(new Error('no'))),
      { message: 'no' },
    );
    assert.equal(qemu.sent.at(-1), 'object-del');
  });

  it('asks QEMU nothing for an image that needs no secret', async () => {
    const qemu = new FakeQemu();
    await withObjects(qemu.monitor, { secrets: [], certificates: null }, () => Promise.resolve());
    assert.deepEqual(qemu.sent, []);
  });

  it('says which key could not be read', async () => {
    const qemu = new FakeQemu({ 'qom-get': () => join(folder, 'none') });
    await assert.rejects(
      withObjects(qemu.monitor, { secrets, certificates: null }, () => Promise.resolve()),
      { code: 'master-key-unreadable', message: /none'$/ },
    );
  });
});
