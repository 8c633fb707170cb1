import assert from 'node:assert/strict';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseDomain } from '../../src/domain/domain.ts';
import type { Guest } from '../lab/guest.ts';
import type { NbdServer } from '../lab/storage.ts';
import { assertNothingLost, endWell, goesOn } from './copies-hold.ts';
import { events, nodeNames, roots, setScene, sourceOf, waitForLibvirt, waitLiveStatus, waitState } from './scene.ts';

const sizeBytes = 64 << 20;

describe('a start', function () {
  this.timeout(150_000);
  const scene = setScene();
  let nodeLog: string;

  interface Pair {
    guest: Guest;
    primary: NbdServer;
    mirror: NbdServer;
  }

  async function protectedGuest(name: string, mirrorBytes = sizeBytes): Promise<Pair> {
    const primary = await scene.lab.nbd({ name: `${name}-primary`, sizeBytes });
    const mirror = await scene.lab.nbd({ name: `${name}-mirror`, sizeBytes: mirrorBytes });
    const image = { format: 'raw' as const, nbd: primary.address };
    const guest = await scene.guest({
      name,
      cmdline: 'witness.rate=200',
      disks: [{ dev: 'vda', bus: 'virtio', image }],
    });
    await scene.agent.mustCdp('protect', name, '--disk', 'vda', '--mirror', mirror.uri);
    await goesOn(guest, 20);
    return { guest, primary, mirror };
  }

  /** The hook's calls of node so far, a line each: what libvirt told it. */
  function callsOfNode(): string[] {
    return existsSync(nodeLog) ? readFileSync(nodeLog, 'utf8').trimEnd().split('\n') : [];
  }

  /** Makes the definition name another source, as an administrator or an old backup of the XML might. */
  async function redefine(guest: Guest, change: (xml: string) => string): Promise<void> {
    const path = join(scene.lab.root, `${guest.name}-changed.xml`);
    writeFileSync(path, change(await guest.xml('--inactive', '--security-info')));
    await scene.lab.virsh('define', path);
  }

  before(async () => {
    const { lab, agent } = scene;
    const told = await agent.installHook();
    assert.match(told, /SIGHUP|HUP/, 'libvirt has to be told of its first hook');
    lab.libvirtd.reload();

    // The hook runs node through a script that takes note of it.
    nodeLog = join(lab.root, 'node.log');
    const counting = join(lab.root, 'counting-node');
    writeFileSync(counting, `#!/bin/sh\necho "$2 $3" >>'${nodeLog}'\nexec '${process.execPath}' "$@"\n`, {
      mode: 0o755,
    });
    const hook = join(lab.libvirtd.hooksDir, 'qemu.d/50-virt-cdp');
    const text = readFileSync(hook, 'utf8');
    assert.match(text, /^node='.*'$/m);
    writeFileSync(hook, text.replace(/^node='.*'$/m, `node='${counting}'`));
  });

  it('of a declared domain puts the mirror under its disk, and into its live metadata, with nobody doing anything', async () => {
    const { guest, primary, mirror } = await protectedGuest('web1');
    await guest.shutdown();
    const stopped = await waitState(scene.agent, 'web1', 'stopped');
    assert.equal(stopped.runningOn, 'none');

    await guest.start();
    await waitState(scene.agent, 'web1', 'protected');
    assert.deepEqual(await roots(guest), ['cdp-vda']);
    const live = await waitLiveStatus(guest, 'protected');
    assert.deepEqual([live.runningOn, live.mirror], ['both', mirror.uri]);
    assert.equal(parseDomain(await guest.xml('--inactive')).status, null);
    assert.ok(callsOfNode().includes('web1 prepare'));
    await goesOn(guest, 50);
    await endWell(guest, [primary.file, mirror.file]);
  });

  it('of a domain that was killed makes its mirror current again', async () => {
    const { guest, primary, mirror } = await protectedGuest('web2');
    await guest.destroy();
    await guest.start();
    await waitState(scene.agent, 'web2', 'protected');
    await goesOn(guest, 50);
    await endWell(guest, [primary.file, mirror.file]);
  });

  it('of a domain that is not protected runs no node and leaves its disk alone', async () => {
    const image = await scene.lab.image('other.raw');
    const before = callsOfNode().length;
    const guest = await scene.guest({
      name: 'other',
      cmdline: 'witness.rate=200',
      disks: [{ dev: 'vda', bus: 'virtio', image }],
    });
    await goesOn(guest, 20);
    assert.equal(callsOfNode().length, before);
    assert.deepEqual(
      (await nodeNames(guest)).filter((name) => name.startsWith('cdp-')),
      [],
    );
    await endWell(guest, [image.file]);
  });

  it('does not wait for an agent that is down, or that hangs', async () => {
    const { agent } = scene;
    const { guest, primary, mirror } = await protectedGuest('web3');
    await guest.shutdown();
    await waitState(agent, 'web3', 'stopped');
    await agent.kill('SIGKILL');
    await guest.start();
    await goesOn(guest, 20);
    await agent.start();
    await waitState(agent, 'web3', 'protected');

    await guest.shutdown();
    await waitState(agent, 'web3', 'stopped');
    process.kill(agent.pid, 'SIGSTOP');
    try {
      await guest.start();
      await goesOn(guest, 20);
    } finally {
      process.kill(agent.pid, 'SIGCONT');
    }
    await waitState(agent, 'web3', 'protected');
    await goesOn(guest, 20);
    await endWell(guest, [primary.file, mirror.file]);
  });

  it('from a stale copy is refused, whoever names it; the message names the current one and the way', async () => {
    const { agent, lab } = scene;
    const { guest, primary, mirror } = await protectedGuest('web4');
    const onPrimary = await guest.xml('--inactive', '--security-info');
    await agent.mustCdp('failover', 'web4');
    await goesOn(guest, 50);
    await guest.shutdown();
    await waitState(agent, 'web4', 'stopped');

    // An agent that is up puts such a definition right, as soon as it hears of it.
    await agent.kill('SIGKILL');
    await redefine(guest, () => onPrimary);
    assert.equal(await sourceOf(guest, 'next start'), primary.uri);
    const refused = await lab.libvirtd.virsh('start', 'web4');
    assert.notEqual(refused.code, 0);
    assert.ok(refused.stderr.includes(mirror.uri), refused.stderr);
    assert.match(refused.stderr, /virt-cdp start web4/);
    await agent.start();

    await scene.guest({
      name: 'thief',
      start: false,
      disks: [{ dev: 'vda', bus: 'virtio', image: { format: 'raw', nbd: primary.address } }],
    });
    const { code, stderr } = await lab.libvirtd.virsh('start', 'thief');
    assert.notEqual(code, 0);
    assert.match(stderr, /stale copy of web4/);
    assert.ok((await events(agent, 'thief', 'start-refused')).length >= 1);

    const boots = guest.witness.boots;
    await agent.mustCdp('start', 'web4');
    await guest.witness.waitReady(60_000, boots + 1);
    assert.equal((await waitState(agent, 'web4', 'failed-over')).runningOn, 'mirror');
    await goesOn(guest, 20);
    await endWell(guest, [mirror.file]);
  });

  it('by virt-cdp start works without the primary; the guest runs on the mirror, and gets a new primary', async () => {
    const { agent, lab } = scene;
    const { guest, primary, mirror } = await protectedGuest('web5');
    await guest.shutdown();
    await waitState(agent, 'web5', 'stopped');
    await primary.kill();

    const boots = guest.witness.boots;
    await agent.mustCdp('start', 'web5');
    await guest.witness.waitReady(60_000, boots + 1);
    assert.equal((await waitState(agent, 'web5', 'failed-over')).runningOn, 'mirror');
    await goesOn(guest, 20);

    const path = lab.path('web5-new.qcow2');
    await agent.mustCdp('rebuild', 'web5', '--to', path);
    const back = await waitState(agent, 'web5', 'protected');
    assert.equal(back.primary.source, path);
    await goesOn(guest, 50);
    await endWell(guest, [{ filename: path, format: 'qcow2' }, mirror.file]);
  });

  it('after a snapshot that the agent did not see is left to virsh, and keeps the overlay', async () => {
    const { agent, lab } = scene;
    const { guest, mirror } = await protectedGuest('web8');
    const overlay = lab.path('web8.overlay');
    await agent.kill('SIGKILL');
    await guest.takeSnapshot(overlay);
    await goesOn(guest, 20);
    await guest.shutdown();
    await agent.start();
    await waitForLibvirt(agent);
    const refused = await agent.cdp('start', 'web8');
    assert.equal(refused.code, 4, refused.stderr);
    assert.ok(refused.stderr.includes(overlay), refused.stderr);

    await guest.start();
    assert.equal(await sourceOf(guest, 'live'), overlay);
    const armed = await waitState(agent, 'web8', 'protected');
    assert.equal(armed.primary.source, overlay);
    await goesOn(guest, 20);
    await guest.shutdown();
    await waitState(agent, 'web8', 'stopped');
    const boots = guest.witness.boots;
    await agent.mustCdp('start', 'web8');
    await guest.witness.waitReady(60_000, boots + 1);
    assert.equal(await sourceOf(guest, 'live'), overlay);
    await waitState(agent, 'web8', 'protected');
    await endWell(guest, [{ filename: overlay, format: 'qcow2' }, mirror.file]);
  });

  it('from the stale copy, when the current one is gone, wants the loss accepted, and tells it', async () => {
    const { agent } = scene;
    const { guest, primary, mirror } = await protectedGuest('web6');
    mirror.failAll();
    await waitState(agent, 'web6', 'exposed');
    await goesOn(guest, 20);
    await guest.destroy();
    await waitState(agent, 'web6', 'stopped');
    mirror.heal();
    await primary.kill();

    const refused = await agent.cdp('start', 'web6');
    assert.equal(refused.code, 4, refused.stderr);
    assert.match(refused.stderr, /--accept-data-loss/);
    const boots = guest.witness.boots;
    const { code, stderr } = await agent.cdp('start', 'web6', '--accept-data-loss');
    assert.equal(code, 0, stderr);
    assert.match(stderr, /whole as of/);
    await guest.witness.waitReady(60_000, boots + 1);
    assert.equal((await waitState(agent, 'web6', 'failed-over')).runningOn, 'mirror');
    await goesOn(guest, 20);
    assert.deepEqual(guest.witness.errors, []);
  });

  /** Of the disk, as the guest has it. */
  async function shownBytes(guest: Guest): Promise<number | undefined> {
    const [device] = (await guest.qmp('query-block')) as { inserted?: { image: { 'virtual-size': number } } }[];
    return device?.inserted?.image['virtual-size'];
  }

  it('is made by virsh after a failover, on the mirror; its larger size is not seen before that', async () => {
    const { agent } = scene;
    const largerBytes = sizeBytes + (1 << 20);
    const { guest, primary, mirror } = await protectedGuest('web7', largerBytes);
    assert.equal(await shownBytes(guest), sizeBytes);
    primary.failAll();
    await waitState(agent, 'web7', 'failed-over');
    await goesOn(guest, 20);
    assert.equal(await shownBytes(guest), sizeBytes);
    await guest.shutdown();
    await waitState(agent, 'web7', 'stopped');
    await guest.start();
    assert.equal((await waitState(agent, 'web7', 'failed-over')).runningOn, 'mirror');
    await goesOn(guest, 20);
    assert.equal(await shownBytes(guest), largerBytes);
    primary.heal();
    const refused = await agent.cdp('rebuild', 'web7', '--to', 'original');
    assert.equal(refused.code, 1);
    assert.match(refused.stderr, /has 67108864 bytes, the disk 68157440/);
    await guest.shutdown();
    await assertNothingLost(guest, [mirror.file]);
  });
});
