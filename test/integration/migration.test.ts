import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { relayFolder, relayPid, relaysFolder } from '../../src/protection/relays/relay-folder.ts';
import { Agent } from '../lab/agent.ts';
import type { Guest } from '../lab/guest.ts';
import { IscsiTarget } from '../lab/iscsi.ts';
import { Libvirtd } from '../lab/libvirtd.ts';
import { type Finished, must } from '../lab/run.ts';
import { defineSecret } from '../lab/secret.ts';
import type { NbdServer } from '../lab/storage.ts';
import { waitFor } from '../lab/wait.ts';
import { assertNothingLost, endWell, goesOn, Mark } from './copies-hold.ts';
import { events, patienceMs, setScene, status, waitForLibvirt, waitState } from './scene.ts';

describe('a live migration by plain virsh', function () {
  this.timeout(150_000);
  const scene = setScene();
  let other: Libvirtd;

  before(async () => {
    other = await Libvirtd.start();
  });

  after(async function () {
    this.timeout(60_000);
    await other.close();
  });

  /** Two libvirtds on one machine, which share their files, are two hosts to libvirt. */
  async function migrate(name: string, from: Libvirtd, to: Libvirtd, ...options: string[]): Promise<Finished> {
    const listen = ['tcp://127.0.0.1', '--listen-address', '127.0.0.1'];
    return from.virsh('migrate', '--live', '--unsafe', name, to.uri, ...listen, ...options);
  }

  async function mustMigrate(name: string, from: Libvirtd, to: Libvirtd): Promise<void> {
    const { code, stderr } = await migrate(name, from, to);
    assert.equal(code, 0, stderr);
  }

  async function protectedGuest(
    name: string,
    format: 'raw' | 'qcow2',
  ): Promise<{ guest: Guest; primary: string; mirror: string }> {
    const image = await scene.lab.image(`${name}.${format}`, format);
    const mirror = scene.lab.path(`${name}-mirror.raw`);
    const guest = await scene.guest({
      name,
      cmdline: 'witness.blocks=2000 witness.rate=50',
      disks: [{ dev: 'vda', bus: 'virtio', image }],
    });
    await scene.agent.mustCdp('protect', name, '--disk', 'vda', '--mirror', mirror, '--create');
    await goesOn(guest, 20);
    return { guest, primary: image.file, mirror };
  }

  it('takes the guest to its primary elsewhere; from then on the mirror is stale, and back here it gets a full sync', async () => {
    const { agent, lab } = scene;
    const { guest, primary, mirror } = await protectedGuest('m1', 'qcow2');
    for (const agentIs of ['up', 'down']) {
      if (agentIs === 'down') await agent.kill('SIGKILL');
      await mustMigrate('m1', lab.libvirtd, other);
      if (agentIs === 'down') {
        await agent.start();
        await waitForLibvirt(agent);
      }
      const left = await waitState(agent, 'm1', 'stopped');
      assert.deepEqual([left.primary.current, left.mirror.current], [true, false], `with the agent ${agentIs}`);
      await goesOn(guest, 20);
      await mustMigrate('m1', other, lab.libvirtd);
      await waitState(agent, 'm1', 'protected');
      await goesOn(guest, 20);
    }
    assert.equal((await events(agent, 'm1', 'migrated-away')).length, 2);
    await endWell(guest, [{ filename: primary, format: 'qcow2' }, mirror]);
  });

  it('of a domain that is failed over is cancelled: the other host would open its stale primary', async () => {
    const { agent, lab } = scene;
    const { guest, mirror } = await protectedGuest('m3', 'raw');
    await agent.mustCdp('failover', 'm3');
    // So slowly that the agent sees it.
    const { code } = await migrate('m3', lab.libvirtd, other, '--bandwidth', '4');
    assert.notEqual(code, 0, 'it has gone');
    assert.equal((await events(agent, 'm3', 'migration-cancelled')).length, 1);
    assert.equal((await waitState(agent, 'm3', 'failed-over')).runningOn, 'mirror');
    await goesOn(guest, 20);

    // A save is nobody else's affair.
    await lab.virsh('managedsave', 'm3');
    await waitState(agent, 'm3', 'stopped');
    assert.equal((await events(agent, 'm3', 'migration-cancelled')).length, 1);
    await assertNothingLost(guest, [mirror]);
  });

  it('of a protected raw file is refused by its lock, and the guest stays protected; held, or by virt-cdp migrate --unprotected, it can go', async () => {
    const { agent, lab } = scene;
    const { guest, primary, mirror } = await protectedGuest('m2', 'raw');
    const { code, stderr } = await migrate('m2', lab.libvirtd, other);
    assert.notEqual(code, 0);
    assert.match(stderr, /lock/);
    await waitState(agent, 'm2', 'protected');
    await goesOn(guest, 20);

    await agent.mustCdp('hold', 'm2');
    await mustMigrate('m2', lab.libvirtd, other);
    const left = await waitState(agent, 'm2', 'stopped');
    assert.deepEqual([left.primary.current, left.mirror.current], [true, false]);
    await goesOn(guest, 20);
    await mustMigrate('m2', other, lab.libvirtd);
    await waitState(agent, 'm2', 'held');
    await agent.mustCdp('release', 'm2');
    await waitState(agent, 'm2', 'protected');

    const virsh = '--unsafe --migrateuri tcp://127.0.0.1 --listen-address 127.0.0.1';
    const told = await agent.mustCdp('migrate', 'm2', other.uri, '--unprotected', '--virsh', virsh);
    assert.match(told, /unprotected/);
    await goesOn(guest, 20);
    const gone = await waitState(agent, 'm2', 'stopped');
    assert.deepEqual([gone.primary.current, gone.mirror.current], [true, false]);
    await mustMigrate('m2', other, lab.libvirtd);
    await waitState(agent, 'm2', 'protected');
    await goesOn(guest, 20);
    await endWell(guest, [primary, mirror]);
  });
});

/** As administrators have it who want most: policy strict, the hook on both hosts, QEMU as a user of its own; and two disks, one with its mirror on iSCSI. */
describe('virt-cdp migrate', function () {
  this.timeout(120_000);
  const scene = setScene({}, { qemuAs: 'neighbour' });
  let other: Libvirtd;
  let there: Agent;
  let guest: Guest;
  let primary: NbdServer;
  let mirror: NbdServer;
  let secondPrimary: NbdServer;
  let target: IscsiTarget;
  let uuid: string;
  /** One on each mirror. */
  let marks: Mark[];

  before(async () => {
    const { lab, agent } = scene;
    other = await Libvirtd.start({ qemuAs: 'neighbour' });
    there = new Agent(other, { config: { mirror: { timeout_ms: 1500 } } });
    await there.start();
    await waitForLibvirt(there);
    for (const [on, host] of [
      [agent, lab.libvirtd],
      [there, other],
    ] as const) {
      await on.mustCdp('install-hook', '--dir', host.hooksDir, '--config', on.configPath);
      host.reload();
    }
    primary = await lab.nbd({ name: 'm3', listen: { port: 0 } });
    mirror = await lab.nbd({ name: 'm3-mirror', listen: { port: 0 } });
    await beginSecondDisk();
    guest = await scene.residentGuest({
      name: 'm3',
      cmdline: 'witness.blocks=2000 witness.rate=50',
      disks: [primary, secondPrimary].map(({ address }, n) => ({
        dev: `vd${'ab'.charAt(n)}`,
        bus: 'virtio',
        image: { format: 'raw', nbd: address },
      })),
    });
    uuid = (await lab.virsh('domuuid', 'm3')).trim();
    await agent.mustCdp('protect', 'm3', '--disk', 'vda', '--mirror', mirror.uri, '--policy', 'strict');
    const lun = lab.path('lun.xml');
    const driver = "<driver name='qemu' type='raw'/>";
    writeFileSync(lun, `<disk type='network' device='disk'>${driver}${target.sourceXml('lun')}</disk>`);
    await agent.mustCdp('protect', 'm3', '--disk', 'vdb', '--mirror-xml', lun, '--policy', 'strict');
    for (const dev of ['vda', 'vdb']) await waitState(agent, 'm3', 'protected', dev);
    marks = [new Mark(mirror.file, 3000), new Mark(target.file, 2020)];
    for (const mark of marks) await mark.set();
  });

  async function beginSecondDisk(): Promise<void> {
    const { lab } = scene;
    const sizeBytes = 8 << 20;
    secondPrimary = await lab.nbd({ name: 'm3-vdb', sizeBytes, listen: { port: 0 } });
    // tgtd writes zeros 512 bytes at a time.
    await must('dd', 'if=/dev/urandom', `of=${secondPrimary.file}`, 'bs=1M', 'count=8', 'conv=notrunc', 'status=none');
    const { file } = await lab.image('lun.img', 'raw', sizeBytes);
    const password = 'sesame-open-47';
    const login = { username: 'cdp', password };
    target = await IscsiTarget.start({ scratch: lab.root, namespace: lab.libvirtd.namespace, file, login });
    const secret = { type: 'iscsi' as const, usage: 'lun', base64: Buffer.from(password).toString('base64') };
    await defineSecret(lab, secret);
    const path = (fileName: string): string => lab.path(`there-${fileName}`);
    await defineSecret({ path, virsh: (...args) => other.mustVirsh(...args) }, secret);
  }

  after(async function () {
    this.timeout(60_000);
    await there.close();
    await other.close();
    await target.close();
  });

  const uri = (agent: Agent): string => (agent === there ? other.uri : scene.lab.libvirtd.uri);

  /** The process by which a host reaches the LUN. */
  function relay({ socket }: Agent): number | null {
    return relayPid(relayFolder(relaysFolder(socket), uuid, 'vdb'));
  }

  async function marksThere(): Promise<boolean[]> {
    return Promise.all(marks.map((mark) => mark.isThere()));
  }

  async function migrate(from: Agent, to: Agent, virsh = '--migrateuri tcp://127.0.0.1'): Promise<Finished> {
    const options = `--unsafe --listen-address 127.0.0.1 ${virsh}`;
    return from.cdp('migrate', 'm3', uri(to), '--dest-socket', to.socket, '--virsh', options);
  }

  it('takes the guest there and back, protected by the same copies, of which none is copied', async () => {
    const { agent } = scene;
    for (const [from, to] of [
      [agent, there],
      [there, agent],
    ] as const) {
      const { code, stdout, stderr } = await migrate(from, to);
      assert.equal(code, 0, stderr);
      assert.match(stdout, /, protected$/m);
      assert.equal((await status(to, 'm3')).state, 'protected');
      const left = await waitState(from, 'm3', 'stopped');
      assert.deepEqual(
        [left.primary.current, left.mirror.current],
        [true, false],
        'the mirror is not its own any more',
      );
      await waitFor('the relay here to have ended', () => relay(from) === null, patienceMs);
      assert.notEqual(relay(to), null, 'the relay there');
      for (const dev of ['vda', 'vdb']) await goesOn(guest, 20, dev);
      assert.deepEqual(await marksThere(), [true, true], `copied: ${JSON.stringify(await events(to, 'm3'))}`);
    }
    const armed = (await events(there, 'm3', 'armed')).map(({ detail }) => detail);
    assert.deepEqual(armed, [{ copied: 0 }, { copied: 0 }]);
  });

  it('that is refused, or fails on the way, leaves the guest as it was', async () => {
    const { agent } = scene;
    assert.equal((await agent.cdp('migrate', 'm3', other.uri)).code, 4, 'without an agent there');
    const { code, stderr } = await migrate(agent, there, '--migrateuri tcp://127.0.0.2');
    assert.equal(code, 1);
    assert.match(stderr, /it runs here as before/);
    await waitState(agent, 'm3', 'protected');
    await goesOn(guest, 20);
    assert.deepEqual(await marksThere(), [true, true]);
  });

  it('goes on there when nobody hands it over, with its mirror stale until it is copied', async () => {
    const { agent } = scene;
    const cli = migrate(agent, there);
    await waitFor('m3 to arrive', async () => (await other.virsh('domstate', 'm3')).code === 0, patienceMs);
    await agent.kill('SIGKILL');
    assert.notEqual((await cli).code, 0);
    await waitState(there, 'm3', 'protected');
    await goesOn(guest, 20);
    assert.deepEqual(await marksThere(), [false, false], 'a mirror was not copied');
    await agent.start();
    const left = await waitState(agent, 'm3', 'stopped');
    assert.deepEqual([left.primary.current, left.mirror.current], [true, false]);
    await other.mustVirsh('destroy', 'm3');
    await assertNothingLost(guest, [primary.file, mirror.file]);
    await assertNothingLost(guest, [secondPrimary.file, target.file], 'vdb');
  });
});
