import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { copyFile } from 'node:fs/promises';
import { exitCodes } from '../../src/cli/exit.ts';
import { DECLARATION_URI } from '../../src/domain/declaration.ts';
import type { DiskStatus } from '../../src/protection/model.ts';
import { makeCertificates } from '../lab/certificates.ts';
import { luksXml } from '../lab/domain-xml.ts';
import type { Guest } from '../lab/guest.ts';
import { LoopDevice } from '../lab/loop-device.ts';
import { createLuks, inClear, passphrase, passphraseBase64 } from '../lab/luks.ts';
import { must } from '../lab/run.ts';
import { defineSecret } from '../lab/secret.ts';
import type { NbdServer } from '../lab/storage.ts';
import { waitFor } from '../lab/wait.ts';
import { assertIdentical, assertNothingLost, goesOn } from './copies-hold.ts';
import { assertNowhere } from './nowhere.ts';
import { events, nodeNames, patienceMs, roots, setScene, sourceOf, waitDisk, waitState } from './scene.ts';

const sizeBytes = 32 << 20;

/**
 * One guest, whose disks lie on different kinds of storage, each with a mirror on yet another: LUKS on a raw file and in qcow2, a
 * file and NBD with TLS, block devices of 512 and 4096 bytes a sector, qcow2 over a backing file and alone.
 */
describe('pairs of different storage', function () {
  this.timeout(240_000);
  const scene = setScene();
  const devices: LoopDevice[] = [];
  const files: string[] = [];
  let guest: Guest;
  let tls: NbdServer;
  let secret: string;
  let luks: { primary: string; mirror: string; mirrorXml: string };
  let sectors: { primary: LoopDevice; mirror: LoopDevice };
  let overlay: { primary: string; mirror: string };
  let plain: string;

  before(async function () {
    this.timeout(240_000);
    const { lab } = scene;
    await makeCertificates(lab.libvirtd.certificates);
    tls = await lab.nbd({
      name: 'vdb-mirror',
      sizeBytes,
      listen: { port: 0 },
      certificates: lab.libvirtd.certificates,
    });
    secret = await defineSecret(lab, { type: 'volume', usage: 'web1', base64: passphraseBase64 });
    luks = { primary: lab.path('vda.luks'), mirror: lab.path('vda-mirror.qcow2'), mirrorXml: '' };
    luks.mirrorXml = diskXml('vda-mirror', luks.mirror, 'qcow2', luksXml(secret));
    await Promise.all([createLuks(luks.primary, 'raw', sizeBytes), createLuks(luks.mirror, 'qcow2', sizeBytes)]);
    await copyFile(luks.mirror, rebuilt());
    plain = (await lab.image('vdb.raw', 'raw', sizeBytes)).file;
    sectors = { primary: await loop('vdc', sizeBytes, 512), mirror: await loop('vdc-mirror', sizeBytes + 8192, 4096) };
    const base = (await lab.image('vdd-base.raw', 'raw', sizeBytes)).file;
    await must('sh', '-c', `dd if=/dev/urandom bs=1M count=2 seek=20 conv=notrunc status=none of='${base}'`);
    overlay = { primary: lab.path('vdd.qcow2'), mirror: lab.path('vdd-mirror.qcow2') };
    await must('qemu-img', 'create', '-q', '-f', 'qcow2', '-b', base, '-F', 'raw', overlay.primary);
    guest = await scene.residentGuest({
      name: 'web1',
      cmdline: 'witness.rate=40 witness.blocks=1000',
      disks: [
        { dev: 'vda', bus: 'virtio', image: { format: 'raw', file: luks.primary, secret } },
        { dev: 'vdb', bus: 'virtio', image: { format: 'raw', file: plain } },
        { dev: 'vdc', bus: 'virtio', image: { format: 'raw', device: sectors.primary.path } },
        { dev: 'vdd', bus: 'virtio', image: { format: 'qcow2', file: overlay.primary } },
      ],
    });
  });

  after(async () => {
    await Promise.all(devices.map((device) => device.detach()));
    for (const file of files) rmSync(file, { force: true });
  });

  async function loop(name: string, bytes: number, sectorBytes: 512 | 4096): Promise<LoopDevice> {
    const { file } = await scene.lab.image(`${name}.img`, 'raw', bytes);
    const device = await LoopDevice.attach(file, sectorBytes);
    devices.push(device);
    return device;
  }

  /** Where the new primary is made: empty, and LUKS, from the beginning. */
  function rebuilt(): string {
    return scene.lab.path('vda-new.qcow2');
  }

  function diskXml(name: string, file: string, format: string, encryption: string): string {
    const path = scene.lab.path(`${name}.xml`);
    const driver = `<driver name='qemu' type='${format}'/>`;
    writeFileSync(
      path,
      `<disk type='file' device='disk'>${driver}<source file='${file}'>${encryption}</source></disk>`,
    );
    return path;
  }

  async function refused(...args: string[]): Promise<string> {
    const { code, stdout } = await scene.agent.cdp(...args, '--json');
    assert.equal(code, exitCodes.refused, stdout);
    return (JSON.parse(stdout) as { error: { code: string } }).error.code;
  }

  it('an encrypted disk is not mirrored in clear, but by its own flag; a mirror in memory is warned of', async () => {
    const { agent } = scene;
    const clear = `/dev/shm/virt-cdp-${randomUUID()}.raw`;
    files.push(clear);
    const args = ['protect', 'web1', '--disk', 'vda', '--mirror', clear, '--create'];
    assert.equal(await refused(...args), 'mirror-not-encrypted');
    const { stderr } = await agent.cdp(...args, '--unencrypted-mirror');
    assert.match(stderr, /lies in memory/);
    await waitState(agent, 'web1', 'protected', 'vda');
    await waitDisk(agent, 'web1', 'told to be at risk', ({ reason }) => /lies in memory/.test(reason ?? ''), 'vda');
    assert.equal((await events(agent, 'web1', 'at-risk')).length, 1);
    await agent.mustCdp('unprotect', 'web1', '--disk', 'vda');
    assert.ok(readFileSync(clear).includes('WITNESS1'));
    assert.ok(!readFileSync(luks.primary).includes('WITNESS1'));
  });

  it('nor by a declaration that came with its definition, unless that says so', async () => {
    const { agent, lab } = scene;
    const clear = (await lab.image('vda-clear.raw', 'raw', sizeBytes)).file;
    const declare = async (attribute: string): Promise<void> => {
      const mirror = `<cdp:mirror${attribute}><disk type='file' device='disk'><source file='${clear}'/></disk></cdp:mirror>`;
      const declaration = `<cdp:protection xmlns:cdp='${DECLARATION_URI}'><cdp:disk dev='vda'>${mirror}</cdp:disk></cdp:protection>`;
      const undeclared = (await guest.xml('--inactive')).replace(/<metadata\/>|<metadata>[^]*<\/metadata>/, '');
      const path = lab.path('declared.xml');
      writeFileSync(path, undeclared.replace('<memory ', `<metadata>${declaration}</metadata><memory `));
      await lab.virsh('define', path);
    };
    await declare('');
    const followed = async (): Promise<boolean> => (await events(agent, 'web1', 'declared')).length === 2;
    await waitFor('the declaration to be followed', followed, patienceMs);
    const told = ({ state, reason }: DiskStatus): boolean =>
      state === 'waiting' && /would hold it in clear/.test(reason ?? '');
    await waitDisk(agent, 'web1', 'refused in clear', told, 'vda');
    await declare(` unencrypted='yes'`);
    await waitState(agent, 'web1', 'protected', 'vda');
    await agent.mustCdp('unprotect', 'web1', '--disk', 'vda');
    assert.ok(readFileSync(clear).includes('WITNESS1'));
  });

  it('are protected, and thin ones stay thin', async () => {
    const { agent } = scene;
    const mirrors = [
      ['vda', '--mirror-xml', luks.mirrorXml],
      ['vdb', '--mirror', tls.uri],
      ['vdc', '--mirror', sectors.mirror.path],
      ['vdd', '--mirror', overlay.mirror, '--create'],
    ];
    const told: string[] = [];
    for (const [dev = '', ...mirror] of mirrors) {
      const { code, stdout, stderr } = await agent.cdp('protect', 'web1', '--disk', dev, ...mirror);
      assert.equal(code, exitCodes.done, stdout + stderr);
      told.push(stderr);
    }
    assert.match(told[2]!, /is larger than the disk/);
    assert.doesNotMatch(told.join(''), /memory|flush/);
    for (const dev of ['vda', 'vdb', 'vdc', 'vdd']) {
      await waitState(agent, 'web1', 'protected', dev);
      await goesOn(guest, 20, dev);
    }
    assert.deepEqual(await roots(guest), ['cdp-vda', 'cdp-vdb', 'cdp-vdc', 'cdp-vdd']);
    // A sector of 512 bytes, which the mirror's device can't write alone.
    const answer = await guest.qmp('human-monitor-command', {
      'command-line': 'qemu-io cdp-vdc "write -P 90 8389120 512"',
    });
    assert.ok(!String(answer).includes('rror'), String(answer));
    // The guest writes to 4 MiB of 32; the backing file has 2 MiB more.
    for (const file of [tls.file, overlay.mirror]) {
      const allocated = statSync(file).blocks * 512;
      assert.ok(allocated < 12 << 20, `${file} has ${allocated} bytes allocated`);
    }
    assert.ok(!readFileSync(luks.mirror).includes('WITNESS1'), 'the mirror is in clear');
    const verify = await agent.cdp('verify', 'web1', '--disk', 'vda', '--json');
    assert.equal((JSON.parse(verify.stdout) as { error: { code: string } }).error.code, 'verify-in-clear');
  });

  it('go over to their mirrors, and back to the originals, a backing file with them', async () => {
    const { agent, lab } = scene;
    for (const dev of ['vdb', 'vdc', 'vdd']) await agent.mustCdp('failover', 'web1', '--disk', dev);
    for (const dev of ['vdb', 'vdc', 'vdd']) {
      await waitState(agent, 'web1', 'failed-over', dev);
      await goesOn(guest, 20, dev);
    }
    assert.equal(await sourceOf(guest, 'next start', 'vdb'), tls.uri);
    for (const dev of ['vdb', 'vdc', 'vdd']) {
      await agent.mustCdp('rebuild', 'web1', '--disk', dev, '--to', 'original');
      await waitState(agent, 'web1', 'protected', dev);
      await goesOn(guest, 20, dev);
    }
    const names = await nodeNames(guest);
    assert.equal(names.filter((name) => /^libvirt-\d+-format$/.test(name)).length, 5, names.join());
    // libvirt finds the chain again that it had opened.
    await agent.mustCdp('hold', 'web1');
    await lab.virsh('blockcommit', 'web1', 'vdd', '--active', '--pivot', '--wait');
    overlay.primary = lab.path('vdd-base.raw');
    await agent.mustCdp('release', 'web1');
    for (const dev of ['vda', 'vdb', 'vdc', 'vdd']) await waitState(agent, 'web1', 'protected', dev);
  });

  it('an encrypted disk starts from its mirror, and is rebuilt encrypted; one on TLS too', async () => {
    const { agent, lab } = scene;
    for (const dev of ['vda', 'vdb']) {
      await agent.mustCdp('failover', 'web1', '--disk', dev);
      await waitState(agent, 'web1', 'failed-over', dev);
      await goesOn(guest, 20, dev);
    }
    await guest.shutdown();
    await assertNothingLost(guest, [await inClear(luks.mirror, 'qcow2')], 'vda');
    await assertNothingLost(guest, [tls.file], 'vdb');
    for (const [dev, ...copies] of [
      ['vdd', { filename: overlay.primary, format: 'raw' as const }, overlay.mirror],
    ] as const) {
      await assertNothingLost(guest, copies, dev);
      await assertIdentical(copies[0], copies[1]);
    }
    await assertNothingLost(guest, [sectors.primary.path, sectors.mirror.path], 'vdc');
    await must('cmp', '--bytes', String(sizeBytes), sectors.primary.path, sectors.mirror.path);

    await guest.start();
    await waitState(agent, 'web1', 'failed-over', 'vda');
    assert.equal(await sourceOf(guest, 'live', 'vda'), luks.mirror);
    assert.equal(await sourceOf(guest, 'live', 'vdb'), tls.uri);
    await agent.mustCdp('rebuild', 'web1', '--disk', 'vdb', '--to', 'original');
    await waitState(agent, 'web1', 'protected', 'vdb');
    await goesOn(guest, 20, 'vda');
    const clear = diskXml('vda-clear', lab.path('vda-new.raw'), 'raw', '');
    assert.equal(await refused('rebuild', 'web1', '--disk', 'vda', '--to-xml', clear), 'target-not-encrypted');
    // An export does not grow with what is written to it.
    await must('truncate', '--size', '40M', rebuilt());
    const server = await lab.nbd({ name: 'vda-new', file: rebuilt() });
    await agent.mustCdp('rebuild', 'web1', '--disk', 'vda', '--to', server.uri, '--format', 'qcow2');
    await waitState(agent, 'web1', 'protected', 'vda');
    assert.match(await guest.xml('--inactive'), /name='vda-new'[^]*?<encryption format='luks'/);
    await goesOn(guest, 20, 'vda');
    await guest.shutdown();
    const copies = [await inClear(rebuilt(), 'qcow2'), await inClear(luks.mirror, 'qcow2')];
    await assertNothingLost(guest, copies, 'vda');
    await assertIdentical(copies[0]!, copies[1]!);
    assert.ok(!readFileSync(rebuilt()).includes('WITNESS1'), 'the new primary is in clear');
    await assertNothingLost(guest, [plain, tls.file], 'vdb');
    await assertIdentical(plain, tls.file);
    await assertNowhere(lab.root, [passphrase, passphraseBase64]);
  });
});
