import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Finding } from '../../src/doctor/finding.ts';
import { consoleBlocks, type ConsoleBlock } from '../docs/console.ts';
import { CephCluster } from '../lab/ceph.ts';
import { luksXml } from '../lab/domain-xml.ts';
import { IscsiTarget } from '../lab/iscsi.ts';
import { createLuks, inClear, passphrase, passphraseBase64 } from '../lab/luks.ts';
import { type Finished, must } from '../lab/run.ts';
import { defineSecret } from '../lab/secret.ts';
import { assertIdentical, assertNothingLost, endWell, goesOn } from './copies-hold.ts';
import { assertNowhere } from './nowhere.ts';
import { events, setScene, sourceOf, waitDisk, waitLiveStatus, waitState } from './scene.ts';
import { Terminal } from './terminal.ts';

const password = 'sesame-open-42';
const login = Buffer.from(password).toString('base64');
const strangersKey = 'bm90IG91ciBrZXk=';
const sizeBytes = 64 << 20;
const luksBytes = 8 << 20;

const page = readFileSync(join(import.meta.dirname, '../..', 'docs/embodiments.md'), 'utf8');

/** What a guest's own Ceph client is told by docs/embodiments.md, but with less patience. */
const clientTimeouts = /^\[client\][^`]*/m.exec(page)?.[0].replaceAll('= 5', '= 3') ?? '';

/** The lines of docs/embodiments.md, four blocks of them. */
function embodiment(): ConsoleBlock[] {
  const blocks = consoleBlocks(page).filter(({ heading }) => heading.startsWith('2. '));
  assert.equal(blocks.length, 4);
  return blocks;
}

/** The disk and its mirror by the XML of docs/embodiments.md. */
function xmlOnPage(): [disk: string, mirror: string] {
  const [disk, mirror, ...others] = [...page.matchAll(/^```xml\n([^]*?)^```/gm)].map(([, text]) => text);
  assert.ok(disk !== undefined && mirror !== undefined && others.length === 0);
  return [disk, mirror];
}

/** A page's XML with the addresses and logins of a `<source>` of this laboratory in place of its own. */
function movedHere(xml: string, source: string): string {
  const parts = [/name='iqn.*?'/, /<host .*?\/>/, /<config .*?\/>/, /username='.*?'/, /usage='.*?'/];
  return parts.reduce((text, part) => text.replace(part, part.exec(source)?.[0] ?? ''), xml);
}

/** QEMU runs as a user of its own, as packages set it: it reads what the agent wrote for it, and has passwords from nowhere else. */
describe('network storage with logins', function () {
  this.timeout(150_000);
  const scene = setScene({ config: { mirror: { timeout_ms: 4_000 } } }, { qemuAs: 'distribution' });
  let ceph: CephCluster;
  const targets: IscsiTarget[] = [];

  before(async function () {
    this.timeout(60_000);
    const { lab } = scene;
    ceph = await CephCluster.start({ folder: join(lab.root, 'ceph'), namespace: lab.libvirtd.namespace });
    const etc = ceph.etc(`key = ${strangersKey}\nrados osd op timeout = 600\n`);
    await must(...lab.libvirtd.namespace.command('mount', '--bind', etc, '/etc/ceph'));
    writeFileSync(join(lab.root, 'guest-ceph.conf'), clientTimeouts);
    await defineSecret(lab, { type: 'ceph', usage: 'rbd-client', base64: ceph.key });
    await defineSecret(lab, { type: 'iscsi', usage: 'lun-login', base64: login });
  });

  after(async () => {
    await Promise.all(targets.map((target) => target.close()));
    await (ceph as CephCluster | undefined)?.close();
  });

  async function lun(name: string, writeCache = false): Promise<IscsiTarget> {
    return lunOf((await scene.lab.image(`${name}.img`, 'raw', sizeBytes)).file, writeCache);
  }

  async function lunOf(file: string, writeCache = false): Promise<IscsiTarget> {
    const { lab } = scene;
    const target = await IscsiTarget.start({
      scratch: lab.root,
      namespace: lab.libvirtd.namespace,
      file,
      login: { username: 'cdp', password },
      writeCache,
    });
    targets.push(target);
    return target;
  }

  /** A `<disk>` in a file, as --mirror-xml and --to-xml take it. */
  function diskXml(name: string, sourceXml: string): string {
    const path = join(scene.lab.root, `${name}.xml`);
    writeFileSync(path, `<disk type='network' device='disk'><driver name='qemu' type='raw'/>${sourceXml}</disk>`);
    return path;
  }

  const onRbd = (image: string): string => ceph.sourceXml(image, 'rbd-client', join(scene.lab.root, 'guest-ceph.conf'));
  const onLun = (target: IscsiTarget): string => target.sourceXml('lun-login');

  it('the second embodiment: from a Ceph RBD image onto an iSCSI LUN, and back onto a new RBD image', async () => {
    const { agent, lab } = scene;
    const [diskOnPage, mirrorOnPage] = xmlOnPage();
    const [secret, protect, look, rebuild] = embodiment() as [ConsoleBlock, ConsoleBlock, ConsoleBlock, ConsoleBlock];
    const terminal = new Terminal(scene, {
      env: { CEPH_ARGS: `-c ${join(ceph.folder, 'ceph.conf')}` },
      // No file with the password is to be left that would be found at the end.
      instead: { "ephemeral='no'": "ephemeral='yes'", '--size 20G': `--size ${sizeBytes}B` },
    });
    await ceph.image('web1', sizeBytes);
    const target = await lun('web1-mirror');
    const [driver, sourceOnPage] = [/<driver .*>/, /<source [^]*<\/source>/].map(
      (part) => part.exec(diskOnPage)?.[0] ?? '',
    );
    const networkXml = movedHere(sourceOnPage!, onRbd('web1'));
    const guest = await scene.guest({
      name: 'web1',
      disks: [{ dev: 'vda', bus: 'virtio', image: { format: 'raw', networkXml } }],
      cmdline: 'witness.rate=50',
    });
    assert.ok((await guest.xml('--inactive')).includes(driver!), driver);
    await goesOn(guest);

    // 1 and 2: the mirror is attached, and after the initial sync every write goes to both.
    writeFileSync(join(lab.root, 'password.base64'), login);
    writeFileSync(join(lab.root, 'web1-mirror.xml'), movedHere(mirrorOnPage, target.sourceXml('web1-mirror')));
    await terminal.typeAll(secret);
    await terminal.typeAll(protect);
    const armed = await waitState(agent, 'web1', 'protected');
    assert.deepEqual(
      [armed.runningOn, armed.primary.source, armed.mirror.source],
      ['both', 'rbd:vms/web1', target.uri],
    );
    await goesOn(guest);

    // A target that is gone keeps no guest waiting for longer than the agent's patience.
    await target.kill();
    await waitState(agent, 'web1', 'exposed');
    await goesOn(guest);
    await target.restart();
    await waitState(agent, 'web1', 'protected');
    await goesOn(guest);

    // 3: Ceph's storage is gone under the writing guest, and the LUN becomes its main disk.
    await ceph.killOsd();
    const moved = await waitState(agent, 'web1', 'failed-over');
    assert.equal(moved.runningOn, 'mirror');
    await terminal.typeAll(look);
    await goesOn(guest);
    assert.equal(await sourceOf(guest, 'next start'), target.uri);

    // 4 and 5: Ceph is back; a new image gets the LUN's content and all new writes, and becomes the main disk.
    await ceph.startOsd();
    const named = diskOnPage.replace("name='vms/web1'", "name='vms/web1-new'");
    writeFileSync(join(lab.root, 'web1-new.xml'), movedHere(named, onRbd('web1-new')));
    await terminal.typeAll(rebuild);
    const back = await waitState(agent, 'web1', 'protected');
    assert.deepEqual([back.runningOn, back.primary.source], ['both', 'rbd:vms/web1-new']);
    await waitLiveStatus(guest, 'protected');
    assert.equal(await sourceOf(guest, 'next start'), 'rbd:vms/web1-new');
    assert.equal((await events(agent, 'web1', 'rebuild-finished')).length, 1);
    assert.deepEqual(await events(agent, 'web1', 'at-risk'), []);
    await goesOn(guest);

    assert.equal(guest.witness.boots, 1);
    await endWell(guest, [
      { filename: ceph.filename('web1-new'), format: 'raw' },
      { filename: target.file, format: 'raw' },
    ]);
    await assertNowhere(lab.root, [password, login, ceph.key]);
  });

  it('from an iSCSI LUN onto an RBD image that --create makes: its loss and return, a planned move and back', async () => {
    const { agent, lab } = scene;
    const target = await lun('web2');
    const guest = await scene.guest({
      name: 'web2',
      disks: [{ dev: 'vda', bus: 'virtio', image: { format: 'raw', networkXml: onLun(target) } }],
      cmdline: 'witness.rate=50',
    });
    await goesOn(guest);
    await agent.mustCdp('protect', 'web2', '--disk', 'vda', '--create', '--mirror', 'rbd:vms/web2');
    await waitState(agent, 'web2', 'protected');
    await goesOn(guest);
    const { stdout } = await agent.cdp('doctor', '--json', '--config', agent.configPath);
    const findings = (JSON.parse(stdout) as Finding[]).filter(({ check }) => check === 'primaries');
    assert.deepEqual(
      findings.map(({ severity, what }) => [severity, what]),
      [['warning', 'the primary of web2 vda, on ISCSI, has no time-out']],
    );
    await waitDisk(agent, 'web2', 'told to be at risk', ({ reason }) =>
      /initiator waits without end/.test(reason ?? ''),
    );

    await ceph.killOsd();
    await waitState(agent, 'web2', 'exposed');
    await goesOn(guest);
    await ceph.startOsd();
    await waitState(agent, 'web2', 'protected');
    await goesOn(guest);

    await agent.mustCdp('failover', 'web2');
    await waitState(agent, 'web2', 'failed-over');
    await goesOn(guest);
    await agent.mustCdp('rebuild', 'web2', '--to', 'original');
    await waitState(agent, 'web2', 'protected');
    await goesOn(guest);
    await endWell(guest, [
      { filename: target.file, format: 'raw' },
      { filename: ceph.filename('web2'), format: 'raw' },
    ]);
    await assertNowhere(lab.root, [strangersKey]);
  });

  it('encrypted on both: LUKS on an iSCSI LUN with its mirror, LUKS on an RBD image; a planned move and back', async () => {
    const { agent, lab } = scene;
    const volume = { type: 'volume', usage: 'web4', base64: passphraseBase64 } as const;
    const encryption = luksXml(await defineSecret(lab, volume));
    const encrypted = (sourceXml: string): string => sourceXml.replace('</source>', `${encryption}</source>`);
    const onDisk = lab.path('web4.img');
    await createLuks(onDisk, 'raw', luksBytes);
    await must('qemu-img', 'convert', '-f', 'raw', '-O', 'raw', onDisk, ceph.filename('web4'));
    const networkXml = encrypted(onLun(await lunOf(onDisk)));
    const guest = await scene.guest({
      name: 'web4',
      disks: [{ dev: 'vda', bus: 'virtio', image: { format: 'raw', networkXml } }],
      cmdline: 'witness.rate=50',
    });
    const clear = await agent.cdp('protect', 'web4', '--disk', 'vda', '--mirror-xml', diskXml('clear', onRbd('web4')));
    assert.equal(clear.code, 4, clear.stderr);
    const mirror = diskXml('web4-mirror', encrypted(onRbd('web4')));
    // What was never written to a LUKS volume reads as data.
    const args = ['protect', 'web4', '--disk', 'vda', '--mirror-xml', mirror];
    assert.equal((await agent.cdp(...args)).code, 4);
    await agent.mustCdp(...args, '--overwrite-mirror');
    await waitState(agent, 'web4', 'protected');
    await goesOn(guest);

    await agent.mustCdp('failover', 'web4');
    await waitState(agent, 'web4', 'failed-over');
    await goesOn(guest);
    await agent.mustCdp('rebuild', 'web4', '--to', 'original');
    await waitState(agent, 'web4', 'protected');
    await goesOn(guest);

    await guest.shutdown();
    const exported = lab.path('web4-rbd.img');
    await must('qemu-img', 'convert', '-f', 'raw', '-O', 'raw', ceph.filename('web4'), exported);
    for (const file of [onDisk, exported]) assert.ok(!readFileSync(file).includes('WITNESS1'), `${file} is in clear`);
    const copies = [await inClear(onDisk, 'raw'), await inClear(exported, 'raw')];
    await assertNothingLost(guest, copies);
    await assertIdentical(copies[0]!, copies[1]!);
    await assertNowhere(lab.root, [passphrase, passphraseBase64]);
  });

  it('what speaks against a LUN is said when the disk is declared: a private secret, a write cache', async () => {
    const { agent, lab } = scene;
    await defineSecret(lab, { type: 'iscsi', usage: 'private-login', base64: login, isPrivate: true });
    const target = await lun('web3-mirror', true);
    await lab.domain({
      name: 'web3',
      disks: [{ dev: 'vda', bus: 'virtio', image: await lab.image('web3.img', 'raw', sizeBytes) }],
      start: false,
    });
    const protect = (usage: string): Promise<Finished> => {
      const mirror = diskXml(usage, target.sourceXml(usage));
      return agent.cdp('protect', 'web3', '--disk', 'vda', '--mirror-xml', mirror, '--json');
    };
    const refused = await protect('private-login');
    const { error } = JSON.parse(refused.stdout) as { error: { code: string; hint: string } };
    assert.deepEqual([refused.code, error.code], [1, 'secret-private']);
    assert.match(error.hint, /private='no'/);

    const { code, stdout } = await protect('lun-login');
    const { warnings } = JSON.parse(stdout) as { warnings: string[] };
    assert.equal(code, 0);
    assert.ok(
      warnings.some((warning) => warning.includes('has a write cache (WCE)')),
      stdout,
    );
  });
});
