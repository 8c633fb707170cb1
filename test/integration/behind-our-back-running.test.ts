import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import type { DiskState } from '../../src/protection/model.ts';
import type { Guest } from '../lab/guest.ts';
import { must } from '../lab/run.ts';
import type { NbdServer } from '../lab/storage.ts';
import { waitFor } from '../lab/wait.ts';
import { assertNothingLost, endWell, goesOn } from './copies-hold.ts';
import { events, patienceMs, roots, setScene, status, waitDisk, waitState } from './scene.ts';

const diskBytes = 32 << 20;

/** What befalls a running domain, in every state. One guest goes through all of it, and nothing it was told is ever lost. */
describe('behind our back, while it runs,', function () {
  this.timeout(240_000);
  // A full sync or a rebuild takes about two seconds: half of the disk is filled with what the guest never writes.
  const scene = setScene({ config: { resync: { max_bytes_per_s: 8 << 20 } } });
  let guest: Guest;
  let primary: NbdServer;
  let mirror: NbdServer;
  /** The file that the primary is in now. */
  let current: string;

  before(async function () {
    this.timeout(240_000);
    const { lab, agent } = scene;
    primary = await lab.nbd({ name: 'web1-primary', sizeBytes: diskBytes, writeError: 'ENOSPC' });
    mirror = await lab.nbd({ name: 'web1-mirror', sizeBytes: diskBytes });
    current = primary.file;
    await must('dd', 'if=/dev/urandom', `of=${current}`, 'bs=1M', 'count=16', 'seek=16', 'conv=notrunc');
    guest = await scene.residentGuest({
      name: 'web1',
      cmdline: 'witness.blocks=2000 witness.rate=50',
      disks: [{ dev: 'vda', bus: 'virtio', image: { format: 'raw', nbd: primary.address } }],
    });
    await agent.mustCdp('protect', 'web1', '--disk', 'vda', '--mirror', mirror.uri);
    await goesOn(guest, 20);
  });

  /** Both copies of the paused guest have all it was told. */
  async function nothingLost(): Promise<void> {
    await waitState(scene.agent, 'web1', 'protected');
    await goesOn(guest, 20);
    await guest.suspend();
    await assertNothingLost(guest, [current, mirror.file]);
    await guest.resume();
  }

  async function rebuild(): Promise<void> {
    current = scene.lab.path(`web1-${Date.now()}.raw`);
    await scene.agent.mustCdp('rebuild', 'web1', '--to', current);
  }

  it('a primary whose storage is full is not left: the guest waits, and goes on when there is room', async () => {
    const { agent } = scene;
    primary.failWrites();
    await guest.waitState('paused', patienceMs);
    const full = await waitState(agent, 'web1', 'waiting');
    assert.match(full.reason ?? '', /storage is full: make room, then virsh resume/);
    assert.deepEqual([full.primary.current, full.mirror.current, full.runningOn], [true, true, 'both']);

    primary.heal();
    await guest.resume();
    await nothingLost();

    mirror.failAll();
    await waitState(agent, 'web1', 'exposed');
    primary.failWrites();
    const alone = await waitDisk(agent, 'web1', 'full', ({ reason }) => reason?.includes('goes on by itself') === true);
    assert.deepEqual([alone.state, alone.primary.current, alone.mirror.current], ['waiting', true, false]);
    primary.heal();
    await goesOn(guest, 20);
    mirror.heal();
    await nothingLost();
    for (const event of ['failed-over', 'primary-lost'] as const)
      assert.deepEqual(await events(agent, 'web1', event), []);
  });

  it('a dump of its memory does not keep it from failing over', async () => {
    const { agent, lab } = scene;
    const path = lab.path('web1.dump');
    await must('mkfifo', path);
    // Nobody reads, so the dump is under way for as long as it takes.
    const held = await open(path, 'r+');
    const dump = lab.libvirtd.virsh('dump', '--live', 'web1', path);
    await waitFor('the dump to begin', async () => (await migration()) === 'active', patienceMs);
    await primary.kill();
    await waitState(agent, 'web1', 'failed-over');
    await goesOn(guest, 20);
    assert.equal(await migration(), 'active', 'the dump has ended');
    await held.close();
    await dump;
    await assertMirrorOnly();
    await primary.restart();
    await rebuild();
    await nothingLost();
  });

  it('a reboot, which libvirt makes of a power-off, is no clean stop', async () => {
    const { agent, lab } = scene;
    const boots = guest.witness.boots;
    await lab.virsh('reboot', 'web1');
    await guest.witness.waitReady(patienceMs, boots + 1);
    await nothingLost();
    const syncs = (await events(agent, 'web1', 'resync-finished')).length;
    process.kill(guest.qemuPid, 'SIGKILL');
    await waitState(agent, 'web1', 'stopped');
    await guest.start();
    await nothingLost();
    assert.equal((await events(agent, 'web1', 'resync-finished')).length, syncs + 1, 'nothing was copied');
  });

  /** How the protected domain gets into a state, and how out of one that would last; a sync ends by itself. */
  const states: [state: DiskState, enter: () => unknown, leave?: () => unknown][] = [
    ['exposed', () => mirror.failAll(), () => mirror.heal()],
    ['syncing', () => scene.agent.mustCdp('resync', 'web1', '--full', '--no-wait')],
    ['held', () => scene.agent.mustCdp('hold', 'web1'), () => scene.agent.mustCdp('release', 'web1')],
    ['failed-over', () => scene.agent.mustCdp('failover', 'web1'), rebuild],
  ];
  for (const [state, enter, leave] of states) {
    it(`${state}, it is killed or destroyed, and started again`, async () => {
      const { agent } = scene;
      for (const kill of [true, false]) {
        if (kill || leave === undefined) {
          await waitState(agent, 'web1', 'protected');
          await enter();
        }
        await waitState(agent, 'web1', state);
        if (kill) process.kill(guest.qemuPid, 'SIGKILL');
        else await guest.destroy();
        await waitState(agent, 'web1', 'stopped');
        await guest.start();
      }
      if (leave !== undefined) {
        await waitState(agent, 'web1', state);
        await leave();
      }
      await nothingLost();
    });
  }

  it('syncing or rebuilding, somebody suspends it: it is protected all the same, and stays suspended', async () => {
    const { agent } = scene;
    await agent.mustCdp('resync', 'web1', '--full', '--no-wait');
    await suspended('syncing');
    await agent.mustCdp('failover', 'web1');
    current = scene.lab.path('web1-suspended.raw');
    await agent.mustCdp('rebuild', 'web1', '--to', current, '--no-wait');
    await suspended('rebuilding');
  });

  async function suspended(state: DiskState): Promise<void> {
    await waitState(scene.agent, 'web1', state);
    await guest.suspend();
    const acknowledged = guest.witness.acknowledged();
    await waitState(scene.agent, 'web1', 'protected');
    assert.match(await guest.state(), /^paused \(user\)/);
    assert.equal(guest.witness.acknowledged(), acknowledged);
    await assertNothingLost(guest, [current, mirror.file]);
    await guest.resume();
    await nothingLost();
  }

  it('strict and waiting for its mirror, somebody resumes it: not one write goes to one copy', async () => {
    const { agent, lab } = scene;
    const path = join(lab.root, 'web1-strict.xml');
    const xml = await guest.xml('--inactive', '--security-info');
    writeFileSync(path, xml.replace(/policy=(["'])available/, 'policy=$1strict'));
    await lab.virsh('define', path);
    await waitFor('the policy', async () => (await status(agent, 'web1')).policy === 'strict', patienceMs);
    mirror.failAll();
    await waitState(agent, 'web1', 'waiting');
    const acknowledged = guest.witness.acknowledged();
    for (let round = 1; round <= 3; round++) {
      await lab.libvirtd.virsh('resume', 'web1');
      await guest.waitState('paused', patienceMs);
      assert.deepEqual(await roots(guest), ['cdp-vda-park']);
    }
    assert.equal(guest.witness.acknowledged(), acknowledged);
    assert.equal((await waitState(agent, 'web1', 'waiting')).runningOn, 'none');
    mirror.heal();
    await waitState(agent, 'web1', 'protected');
    await goesOn(guest, 20);
    await endWell(guest, [current, mirror.file]);
  });

  async function migration(): Promise<string | undefined> {
    return ((await guest.qmp('query-migrate')) as { status?: string }).status;
  }

  async function assertMirrorOnly(): Promise<void> {
    await guest.suspend();
    await assertNothingLost(guest, [mirror.file]);
    await guest.resume();
  }
});
