import assert from 'node:assert/strict';
import { chmodSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';
import { luksXml } from '../lab/domain-xml.ts';
import type { Guest } from '../lab/guest.ts';
import type { Image } from '../lab/copies.ts';
import { createLuks, inClear, passphrase, passphraseBase64 } from '../lab/luks.ts';
import { must } from '../lab/run.ts';
import { defineSecret } from '../lab/secret.ts';
import { LoopDevice, type NbdServer } from '../lab/storage.ts';
import { assertIdentical, assertNothingLost, goesOn } from './copies-hold.ts';
import { assertNowhere } from './nowhere.ts';
import { setScene, waitForLibvirt, waitState } from './scene.ts';

/** As packages set it: QEMU runs as a user of its own, with a /dev of its own, and may open what libvirt gave it alone. */
describe('a QEMU that may open nothing by itself', function () {
  this.timeout(120_000);
  /** The agent's tools are found here first: each notes its arguments, and does its work. */
  const tools = mkdtempSync(join(tmpdir(), 'virt-cdp-tools-'));
  const PATH = [tools, process.env['PATH']].join(delimiter);
  const scene = setScene({ env: { PATH } }, { qemuAs: 'distribution' });
  const sizeBytes = 8 << 20;
  const disks = ['vda', 'vdb', 'vdc', 'vdd'];
  let guest: Guest;
  let nbd: NbdServer;
  let loop: LoopDevice;
  let primary: string;
  let mirror: string;
  let luks: { primary: string; mirror: string };

  before(async () => {
    const { lab, agent } = scene;
    for (const tool of ['qemu-img', 'qemu-io', 'virsh'])
      writeFileSync(join(tools, tool), notingArguments(tool), { mode: 0o755 });
    mirror = lab.path('mirror.qcow2');
    nbd = await lab.nbd({ name: 'over-there', sizeBytes });
    loop = await LoopDevice.over((await lab.image('device.raw', 'raw', sizeBytes)).file, lab.root);
    const images = await Promise.all(
      ['a.qcow2', 'b.raw', 'c.raw'].map((name) => lab.image(name, name.endsWith('qcow2') ? 'qcow2' : 'raw', sizeBytes)),
    );
    primary = images[0]!.file;
    luks = { primary: lab.path('d.luks'), mirror: lab.path('d-mirror.luks') };
    await Promise.all([createLuks(luks.primary, 'raw', sizeBytes), createLuks(luks.mirror, 'qcow2', sizeBytes)]);
    chmodSync(luks.mirror, 0o600);
    const secret = await defineSecret(lab, { type: 'volume', usage: 'confined', base64: passphraseBase64 });
    const mirrorXml = lab.path('d-mirror.xml');
    writeFileSync(
      mirrorXml,
      `<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='${luks.mirror}'>${luksXml(secret)}</source></disk>`,
    );
    guest = await scene.residentGuest({
      name: 'confined',
      cmdline: 'witness.blocks=1000 witness.rate=50',
      disks: [...images, { format: 'raw' as const, file: luks.primary, secret }].map((image, n) => ({
        dev: disks[n]!,
        bus: 'virtio',
        image,
      })),
    });
    const protect = async (dev: string, ...mirror: string[]): Promise<unknown> =>
      agent.mustCdp('protect', 'confined', '--disk', dev, ...mirror);
    await protect('vda', '--mirror', mirror, '--create');
    await protect('vdb', '--mirror', loop.path);
    await protect('vdc', '--mirror', nbd.uri);
    await protect('vdd', '--mirror-xml', mirrorXml);
  });

  after(async () => {
    rmSync(tools, { recursive: true });
    await loop.close();
  });

  async function allProtected(): Promise<void> {
    for (const dev of disks) await waitState(scene.agent, 'confined', 'protected', dev);
    await goesOn(guest, 20);
  }

  it('is protected by a file, a block device, a unix socket and a LUKS image that are not its own', async () => {
    await allProtected();
    assert.ok(![primary, luks.primary].map(owner).includes(0), "the primaries are QEMU's");
    assert.deepEqual([mirror, luks.mirror].map(owner), [0, 0], 'the mirrors stay ours');
    const dev = await must('ls', `/proc/${guest.qemuPid}/root/dev`);
    assert.ok(!dev.includes('loop'), 'QEMU sees no block device');
  });

  it('has its copies compared, by images that are handed to it as well', async () => {
    await scene.agent.mustCdp('verify', 'confined', '--disk', 'vda');
    await goesOn(guest, 20);
  });

  it('opens them again after libvirtd has restarted, and a mirror that failed', async () => {
    const { lab, agent } = scene;
    await lab.libvirtd.restart();
    await waitForLibvirt(agent);
    await nbd.kill();
    await waitState(agent, 'confined', 'exposed', 'vdc');
    await agent.mustCdp('hold', 'confined');
    await nbd.restart();
    await agent.mustCdp('release', 'confined');
    await allProtected();
  });

  it('moves to mirrors and back to the old primaries, which it opens again', async () => {
    const { agent } = scene;
    for (const dev of ['vda', 'vdd']) {
      await agent.mustCdp('failover', 'confined', '--disk', dev);
      await goesOn(guest, 20, dev);
      await agent.mustCdp('rebuild', 'confined', '--disk', dev, '--to', 'original');
    }
    await allProtected();
  });

  it("starts from mirrors, which are libvirt's to give it then, and is rebuilt onto a file of its own", async () => {
    const { lab, agent } = scene;
    for (const dev of ['vda', 'vdb', 'vdd']) await agent.mustCdp('failover', 'confined', '--disk', dev);
    await goesOn(guest, 20, 'vdd');
    await guest.shutdown();
    const files = [primary, mirror, luks.primary, luks.mirror, loop.path];
    assert.deepEqual(files.map(owner), [0, 0, 0, 0, 0], "nothing is left with QEMU's user");
    await assertNothingLost(guest, [await inClear(luks.mirror, 'qcow2')], 'vdd');
    await guest.start();
    assert.ok(![mirror, luks.mirror].map(owner).includes(0), "the mirrors are QEMU's");
    const rebuilt = lab.path('rebuilt.qcow2');
    await agent.mustCdp('rebuild', 'confined', '--disk', 'vda', '--to', rebuilt);
    for (const dev of ['vda', 'vdd']) await goesOn(guest, 20, dev);
    assert.notEqual(owner(rebuilt), 0, "the new primary is QEMU's");
    await assertUnspoken();
    await guest.shutdown();
    assert.deepEqual([...files, rebuilt].map(owner), [0, 0, 0, 0, 0, 0]);
    const qcow2 = (filename: string): Image => ({ filename, format: 'qcow2' });
    await assertNothingLost(guest, [qcow2(rebuilt), qcow2(mirror)]);
    await assertIdentical(qcow2(rebuilt), qcow2(mirror));
    await assertNothingLost(guest, [loop.path], 'vdb');
    await assertNothingLost(guest, [await inClear(luks.mirror, 'qcow2')], 'vdd');
  });

  /** In no log, record or event, nor in the arguments that QEMU's log has, nor in those of a tool, a status or the XML. */
  async function assertUnspoken(): Promise<void> {
    const { lab, agent } = scene;
    const texts = [passphrase, passphraseBase64];
    await assertNowhere(lab.root, texts);
    const typed = readFileSync(join(tools, 'arguments'), 'utf8');
    assert.match(typed, /qemu-img .*"qom-type":"secret"/, 'a tool was given the passphrase, too');
    const told = [
      await agent.mustCdp('status', 'confined', '--json'),
      await agent.mustCdp('events', '--json'),
      await guest.xml(),
      await guest.xml('--inactive'),
    ];
    for (const text of texts) assert.ok(![typed, ...told].join('\n').includes(text), `${text} is there`);
  }
});

/** Instead of a program: its arguments are put down beside it. */
function notingArguments(program: string): string {
  const real = `PATH=${process.env['PATH'] ?? ''} exec ${program} "$@"`;
  return `#!/bin/sh\necho "${program} $*" >>"\${0%/*}/arguments"\n${real}\n`;
}

function owner(path: string): number {
  return statSync(path).uid;
}
