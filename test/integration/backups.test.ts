import assert from 'node:assert/strict';
import { mkdirSync, writeFileSync } from 'node:fs';
import type { Guest } from '../lab/guest.ts';
import { must } from '../lab/run.ts';
import { waitFor } from '../lab/wait.ts';
import { endWell, goesOn } from './copies-hold.ts';
import { events, patienceMs, roots, setScene, waitDisk, waitState } from './scene.ts';

/** Backups, limits, sizes: what libvirt does to a disk's nodes while they are in use. */
describe("libvirt's own work on a protected disk", function () {
  this.timeout(150_000);
  const scene = setScene();
  let guest: Guest;
  let primary: string;
  let mirror: string;

  before(async function () {
    this.timeout(150_000);
    const { lab, agent } = scene;
    const image = await lab.image('web1.raw');
    primary = image.file;
    mirror = lab.path('web1-mirror.raw');
    await must('dd', 'if=/dev/urandom', `of=${primary}`, 'bs=1M', 'count=30', 'seek=34', 'conv=notrunc');
    guest = await scene.residentGuest({
      name: 'web1',
      cmdline: 'witness.rate=100 witness.blocks=8000',
      disks: [{ dev: 'vda', bus: 'virtio', image }],
    });
    await agent.mustCdp('protect', 'web1', '--disk', 'vda', '--mirror', mirror, '--create');
  });

  async function beginBackup(file: string): Promise<void> {
    const path = scene.lab.path('backup.xml');
    writeFileSync(
      path,
      `<domainbackup mode='push'><disks><disk name='vda' backup='yes' type='file'>
         <target file='${file}'/><driver type='raw'/></disk></disks></domainbackup>`,
    );
    await scene.lab.virsh('backup-begin', 'web1', path);
  }

  async function backupEnds(): Promise<void> {
    await waitFor(
      'the backup to end',
      async () => /None/.test(await scene.lab.virsh('domjobinfo', 'web1')),
      patienceMs,
    );
  }

  it('a backup leaves it protected', async () => {
    await beginBackup(scene.lab.path('backup.raw'));
    await goesOn(guest, 10);
    await backupEnds();
    await waitState(scene.agent, 'web1', 'protected');
    assert.deepEqual(await roots(guest), ['cdp-vda']);
  });

  it('a backup onto a storage that is full is no damage to either copy', async () => {
    const { agent, lab } = scene;
    const small = lab.path('small');
    mkdirSync(small);
    const [mount, ...args] = lab.libvirtd.namespace.command('mount', '-t', 'tmpfs', '-o', 'size=4m', 'tmpfs', small);
    await must(mount, ...args);
    await beginBackup(`${small}/backup.raw`);
    await goesOn(guest, 200);
    await backupEnds();
    await waitState(agent, 'web1', 'protected');
    await goesOn(guest, 50);
    for (const event of ['primary-lost', 'failed-over'] as const)
      assert.deepEqual(await events(agent, 'web1', event), [], event);
  });

  it('a limit of its I/O stays through surgeries, and statistics go on', async () => {
    const { agent, lab } = scene;
    const limit = async (): Promise<string> => lab.virsh('blkdeviotune', 'web1', 'vda');
    await lab.virsh('blkdeviotune', 'web1', 'vda', '--total-iops-sec', '2000');
    await agent.mustCdp('hold', 'web1');
    await agent.mustCdp('release', 'web1');
    assert.match(await limit(), /total_iops_sec *: 2000/);
    assert.match(JSON.stringify(await guest.qmp('query-block')), /"iops":2000/);
    await lab.virsh('domblkstat', 'web1', 'vda');
    await lab.virsh('domblkinfo', 'web1', 'vda');
    await lab.virsh('domstats', 'web1', '--block');
    await lab.virsh('blkdeviotune', 'web1', 'vda', '--total-iops-sec', '0');
  });

  it('a resize is refused while it is protected; of a held disk it asks for a larger mirror, and a full sync', async () => {
    const { agent, lab } = scene;
    assert.match((await lab.libvirtd.virsh('blockresize', 'web1', 'vda', '80M')).stderr, /Permission conflict/);
    await goesOn(guest, 10);
    await agent.mustCdp('hold', 'web1');
    await lab.virsh('blockresize', 'web1', 'vda', '80M');
    await agent.cdp('release', 'web1', '--no-wait');
    const told = await waitDisk(agent, 'web1', 'told why', ({ reason }) => /too small/.test(reason ?? ''));
    assert.equal(told.mirror.current, false);
    // What was there before must not stay where the disk has grown.
    await must('sh', '-c', 'dd if=/dev/urandom bs=1M count=16 >>"$1"', 'sh', mirror);
    await agent.mustCdp('resync', 'web1');
    await waitState(agent, 'web1', 'protected');
    await goesOn(guest, 20);
    await endWell(guest, [primary, mirror]);
  });
});
