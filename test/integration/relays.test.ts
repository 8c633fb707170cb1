import assert from 'node:assert/strict';
import { existsSync, readFileSync, readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { relayFolder, relayPid, relaysFolder } from '../../src/protection/relays/relay-folder.ts';
import type { Guest } from '../lab/guest.ts';
import { IscsiTarget } from '../lab/iscsi.ts';
import { must } from '../lab/run.ts';
import { defineSecret } from '../lab/secret.ts';
import { waitFor } from '../lab/wait.ts';
import { assertNothingLost, endWell, goesOn } from './copies-hold.ts';
import { assertNowhere } from './nowhere.ts';
import { events, patienceMs, setScene, waitForLibvirt, waitState } from './scene.ts';

/** QEMU's own initiator would wait for it without end, whatever time-out it was given. QEMU runs as a user of its own, as packages set it. */
describe('a mirror on an iSCSI target, behind a relay', function () {
  this.timeout(120_000);
  const scene = setScene({ config: { mirror: { timeout_ms: 3000 } } }, { qemuAs: 'distribution' });
  const password = 'sesame-open-46';
  const encoded = Buffer.from(password).toString('base64');
  const sizeBytes = 8 << 20;
  let target: IscsiTarget;
  let guest: Guest;
  let primary: string;
  let folder: string;

  before(async () => {
    const { lab, agent } = scene;
    const { file } = await lab.image('lun.img', 'raw', sizeBytes);
    const login = { username: 'cdp', password };
    target = await IscsiTarget.start({ scratch: lab.root, namespace: lab.libvirtd.namespace, file, login });
    await defineSecret(lab, { type: 'iscsi', usage: target.target, base64: encoded });
    const image = await lab.image('mail.raw', 'raw', sizeBytes);
    primary = image.file;
    // tgtd writes zeros 512 bytes at a time, each to the disk: longer than this agent's patience.
    await must('dd', 'if=/dev/urandom', `of=${primary}`, 'bs=1M', `count=${sizeBytes >> 20}`, 'conv=notrunc');
    guest = await scene.residentGuest({
      name: 'mail',
      disks: [{ dev: 'vda', bus: 'virtio', image }],
      cmdline: 'witness.rate=50',
    });
    const uuid = (await lab.libvirtd.mustVirsh('domuuid', 'mail')).trim();
    folder = relayFolder(relaysFolder(agent.socket), uuid, 'vda');
    await agent.mustCdp('protect', 'mail', '--disk', 'vda', '--mirror', target.uri);
    await waitState(agent, 'mail', 'protected');
    await goesOn(guest);
  });

  after(async () => {
    await (target as IscsiTarget | undefined)?.close();
  });

  function relay(): number {
    const pid = relayPid(folder);
    assert.ok(pid !== null, 'the relay runs');
    return pid;
  }

  /** Both copies are current, through another relay than this one. */
  async function protectedByOther(former: number): Promise<void> {
    const isOther = (): boolean => ![null, former].includes(relayPid(folder));
    await waitFor('another relay', () => Promise.resolve(isOther()), patienceMs);
    await waitState(scene.agent, 'mail', 'protected');
    await goesOn(guest);
  }

  it("is what status calls it, served to that QEMU's user alone, by a process that shows no password", async () => {
    const { mirror } = await waitState(scene.agent, 'mail', 'protected');
    assert.equal(mirror.source, target.uri);
    const { uid, mode } = statSync(join(folder, 'socket'));
    assert.deepEqual([uid === statSync(primary).uid, uid === 0, mode & 0o777], [true, false, 0o700]);
    for (const what of ['cmdline', 'environ'])
      for (const secret of [password, encoded])
        assert.ok(!readFileSync(`/proc/${relay()}/${what}`, 'utf8').includes(secret), `${what} has the password`);
  });

  it('is left when the target hangs, and brought up to date when it goes on', async () => {
    const former = relay();
    target.hang();
    const exposed = await waitState(scene.agent, 'mail', 'exposed');
    assert.deepEqual([exposed.runningOn, exposed.mirror.current], ['primary', false]);
    await goesOn(guest);
    await assertNothingLost(guest, [primary]);
    assert.equal((await events(scene.agent, 'mail', 'hang')).at(-1)?.detail['side'], 'mirror');
    target.unhang();
    await protectedByOther(former);
  });

  it('is left when the target is gone, and brought up to date when it is back', async () => {
    const former = relay();
    await target.kill();
    await waitState(scene.agent, 'mail', 'exposed');
    await goesOn(guest);
    await target.restart();
    await protectedByOther(former);
  });

  it('is not lost with the agent, and its relay is known to the next one', async () => {
    const { agent } = scene;
    const pid = relay();
    const lost = (await events(agent, 'mail', 'mirror-lost')).length;
    await agent.kill('SIGKILL');
    await goesOn(guest);
    assert.equal(relay(), pid);
    await agent.start();
    await waitForLibvirt(agent);
    await waitState(agent, 'mail', 'protected');
    await goesOn(guest);
    assert.equal(relay(), pid);
    assert.equal((await events(agent, 'mail', 'mirror-lost')).length, lost);
  });

  it('is brought up to date when its target restarted while no agent was there, and no request has failed', async () => {
    const { agent } = scene;
    const former = relay();
    const { length } = await events(agent, 'mail', 'mirror-lost');
    await agent.kill('SIGKILL');
    await target.restart();
    await goesOn(guest);
    assert.equal(relay(), former);
    await agent.start();
    await waitForLibvirt(agent);
    await protectedByOther(former);
    const [told] = (await events(agent, 'mail', 'mirror-lost')).slice(length);
    assert.match(String(told?.detail['why']), /its server was away/);
  });

  it('counts as failed when its relay is killed, and is brought up to date through another', async () => {
    const former = relay();
    process.kill(former, 'SIGKILL');
    await protectedByOther(former);
  });

  it('is what the guest lives on after a failover: the target may restart, the relay be killed; then it moves back', async () => {
    const { agent } = scene;
    await agent.mustCdp('failover', 'mail');
    await waitState(agent, 'mail', 'failed-over');
    const first = relay();
    await goesOn(guest);
    await target.restart();
    await goesOn(guest);
    assert.equal(relay(), first);
    process.kill(first, 'SIGKILL');
    await goesOn(guest);
    assert.notEqual(relay(), first);
    await agent.mustCdp('rebuild', 'mail', '--to', 'original');
    await waitState(agent, 'mail', 'protected');
    await goesOn(guest);
  });

  it('leaves nothing behind when the domain has stopped, and its copies are identical', async () => {
    const pid = relay();
    await endWell(guest, [primary, target.file]);
    assert.equal(guest.witness.boots, 1);
    await waitFor('the relay to be cleared away', () => Promise.resolve(!existsSync(folder)), patienceMs);
    assert.deepEqual(readdirSync(relaysFolder(scene.agent.socket)), []);
    await waitFor('the relay to be gone', () => Promise.resolve(!existsSync(`/proc/${pid}`)), patienceMs);
    await assertNowhere(scene.lab.root, [password, encoded]);
  });
});
