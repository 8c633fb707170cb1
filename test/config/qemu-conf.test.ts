import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { givesQemuItsFiles, nbdCertificates } from '../../src/config/qemu-conf.ts';

describe("libvirt's qemu.conf", () => {
  let folder: string;
  before(async () => (folder = await mkdtemp(join(tmpdir(), 'virt-cdp-qemu-conf-'))));
  after(() => rm(folder, { recursive: true }));

  const rows: [text: string | null, own: boolean, certificates: string][] = [
    [null, false, '/etc/pki/qemu'],
    ['', true, '/etc/pki/libvirt-nbd'],
    ['#nbd_tls_x509_cert_dir = "/commented"\n', false, '/etc/pki/qemu'],
    ['default_tls_x509_cert_dir = "/all"\n', true, '/all'],
    ['default_tls_x509_cert_dir = "/all"\n  nbd_tls_x509_cert_dir=\'/nbd\'\n', false, '/nbd'],
  ];
  for (const [text, own, certificates] of rows) {
    it(`leads to ${certificates} by ${JSON.stringify(text)}`, async () => {
      const file = join(folder, `${rows.findIndex((row) => row[0] === text)}.conf`);
      if (text !== null) await writeFile(file, text);
      assert.equal(await nbdCertificates({ file, exists: () => own }), certificates);
    });
  }

  it('says whether QEMU becomes the owner of its files', async () => {
    const file = join(folder, 'owner.conf');
    assert.equal(await givesQemuItsFiles(file), true);
    await writeFile(file, '#dynamic_ownership = 0\n');
    assert.equal(await givesQemuItsFiles(file), true);
    await writeFile(file, 'user = "x"\ndynamic_ownership = 0\n');
    assert.equal(await givesQemuItsFiles(file), false);
  });
});
