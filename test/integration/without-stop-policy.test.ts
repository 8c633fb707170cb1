import assert from 'node:assert/strict';
import { constants, existsSync, readFileSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import type { Guest } from '../lab/guest.ts';
import { run } from '../lab/run.ts';
import type { NbdServer } from '../lab/storage.ts';
import { waitFor } from '../lab/wait.ts';
import { assertIdentical, assertNothingLost, goesOn } from './copies-hold.ts';
import { events, patienceMs, roots, setScene, status, waitDisk, waitState } from './scene.ts';

const sizeBytes = 32 << 20;

/** Slow enough to be met at it. */
const copyBytesPerS = 8 << 20;
const config = { resync: { max_bytes_per_s: copyBytesPerS }, mirror: { timeout_ms: 1000 } };

describe('a guest that is told of I/O errors', function () {
  this.timeout(150_000);
  const scene = setScene({ config });
  let guest: Guest;
  let primary: NbdServer;
  let mirror: NbdServer;

  before(async () => {
    const { lab, agent } = scene;
    await agent.installHook();
    lab.libvirtd.reload();
    primary = await lab.nbd({ name: 'old1', sizeBytes });
    mirror = await lab.nbd({ name: 'old1-mirror', sizeBytes });
    const image = { format: 'raw' as const, nbd: primary.address };
    const disks = [{ dev: 'vda', bus: 'virtio' as const, image, stopPolicy: false }];
    guest = await scene.residentGuest({ name: 'old1', disks, cmdline: 'witness.rate=50' });
    await goesOn(guest);
  });

  it('is protected as it runs, with less of a guarantee, which is told', async () => {
    const { agent } = scene;
    const { code, stderr } = await agent.cdp('protect', 'old1', '--disk', 'vda', '--mirror', mirror.uri);
    assert.equal(code, 0, stderr);
    assert.match(stderr, /an error of its primary is told to the guest.*virsh shutdown old1, then virsh start old1/);
    const { reason } = await waitState(agent, 'old1', 'protected');
    assert.match(reason ?? '', /without error_policy='stop'.*--stop-policy-by save-restore/);
    const { engine, guarantee } = await status(agent, 'old1');
    assert.deepEqual([engine, guarantee, await roots(guest)], ['mirror', 'relaxed', ['cdp-vda']]);
    await goesOn(guest);
    await agent.mustCdp('hold', 'old1');
    assert.match((await roots(guest)).join(), /^libvirt-/);
    await goesOn(guest);
    await agent.mustCdp('release', 'old1');
    await waitState(agent, 'old1', 'protected');
    await assertNothingLost(guest, [mirror.file]);
  });

  it('stays so when it is reset, and its copies identical', async () => {
    const { agent } = scene;
    const syncs = (await events(agent, 'old1', 'resync-started')).length;
    await guest.reset();
    await goesOn(guest);
    await guest.suspend();
    await assertIdentical(primary.file, mirror.file);
    await guest.resume();
    await waitState(agent, 'old1', 'protected');
    assert.equal((await events(agent, 'old1', 'resync-started')).length, syncs);
  });

  it('goes on when its mirror fails or hangs, and is told nothing; the mirror then gets everything again', async () => {
    const { agent } = scene;
    const outages: { begins: () => unknown; ends: () => unknown }[] = [
      { begins: async () => mirror.kill(), ends: async () => mirror.restart() },
      {
        begins: () => {
          mirror.hang();
        },
        ends: () => {
          mirror.unhang();
        },
      },
    ];
    for (const { begins, ends } of outages) {
      await begins();
      const exposed = await waitState(agent, 'old1', 'exposed');
      assert.equal(exposed.mirror.current, false);
      await goesOn(guest);
      await ends();
      const syncing = await waitDisk(agent, 'old1', 'copied to', ({ job }) => job !== null);
      assert.equal(syncing.job?.kind, 'full-sync');
      assert.match(syncing.reason ?? '', /everything is copied: without error_policy='stop'/);
      await waitState(agent, 'old1', 'protected');
      await goesOn(guest);
      await assertNothingLost(guest, [mirror.file]);
    }
  });

  it('waits for a primary that hangs, and is told nothing', async () => {
    const { agent } = scene;
    primary.hang();
    const hung = await waitState(agent, 'old1', 'waiting');
    assert.match(hung.reason ?? '', /the primary has not answered since/);
    primary.unhang();
    await goesOn(guest);
    await waitState(agent, 'old1', 'protected');
    await assertNothingLost(guest, [mirror.file]);
  });

  it('is found again by the next agent, while everything is copied and while it is protected', async () => {
    const { agent } = scene;
    await agent.mustCdp('resync', 'old1', '--full', '--no-wait');
    await waitDisk(agent, 'old1', 'copied to', ({ job }) => job !== null);
    const copies = (await events(agent, 'old1', 'resync-started')).length;
    await agent.kill('SIGKILL');
    await goesOn(guest);
    await agent.start();
    await waitState(agent, 'old1', 'protected');
    assert.equal((await events(agent, 'old1', 'resync-started')).length, copies, 'it was begun anew');

    await agent.kill('SIGKILL');
    await goesOn(guest);
    await agent.start();
    await waitState(agent, 'old1', 'protected');
    await agent.kill('SIGKILL');
    mirror.failWrites();
    await goesOn(guest);
    await agent.start();
    await waitState(agent, 'old1', 'exposed');
    mirror.heal();
    await waitState(agent, 'old1', 'protected');
    await goesOn(guest);
    await assertNothingLost(guest, [primary.file, mirror.file]);
  });

  it('can be saved and restored', async () => {
    const { agent, lab } = scene;
    await lab.virsh('managedsave', 'old1');
    await waitState(agent, 'old1', 'stopped');
    await lab.virsh('start', 'old1');
    await waitState(agent, 'old1', 'protected');
    await goesOn(guest);
    assert.equal(guest.witness.boots, 2);
    await assertNothingLost(guest, [primary.file, mirror.file]);
  });

  it('is moved onto the mirror when its primary fails, and loses nothing that it was told is safe', async () => {
    const { agent } = scene;
    await primary.kill();
    await waitState(agent, 'old1', 'failed-over');
    await goesOn(guest);
    assert.match(await guest.state(), /^running/);
    assert.deepEqual(await roots(guest), ['cdp-vda-mirror']);
    assert.deepEqual((await guest.witness.checkCopy(mirror.file, 'vda')).missing, []);
    assert.ok(
      guest.witness.errors.every(({ kind }) => kind === 'ERR'),
      'it read what it had not written',
    );
    const refused = await agent.cdp('rebuild', 'old1', '--to', 'original');
    assert.match(refused.stderr, /virsh shutdown old1, then virsh start old1/);
  });

  it('has the quorum and its guarantee from the next start on', async () => {
    const { agent } = scene;
    await guest.shutdown();
    await primary.restart();
    await guest.start();
    await waitState(agent, 'old1', 'failed-over');
    await goesOn(guest);
    await agent.mustCdp('rebuild', 'old1', '--to', 'original');
    await waitState(agent, 'old1', 'protected');
    const { engine, guarantee } = await status(agent, 'old1');
    assert.deepEqual([engine, guarantee], ['quorum', 'strict-ack']);
    await goesOn(guest);
    await guest.shutdown();
    for (const { file } of [primary, mirror])
      assert.deepEqual((await guest.witness.checkCopy(file, 'vda')).missing, []);
    await assertIdentical(primary.file, mirror.file);
  });

  it('has a save cancelled that would leave it on a primary which an agent that died was about to leave', async () => {
    const { agent, lab } = scene;
    const failing = await lab.nbd({ name: 'old2', sizeBytes });
    const other = await lab.nbd({ name: 'old2-mirror', sizeBytes });
    const image = { format: 'raw' as const, nbd: failing.address };
    const disks = [{ dev: 'vda', bus: 'virtio' as const, image, stopPolicy: false }];
    const old2 = await scene.residentGuest({ name: 'old2', disks, cmdline: 'witness.rate=50' });
    await agent.mustCdp('protect', 'old2', '--disk', 'vda', '--mirror', other.uri);
    const { uuid } = await waitState(agent, 'old2', 'protected').then(() => status(agent, 'old2'));
    await goesOn(old2);
    await agent.kill('SIGKILL');
    failing.failAll();
    const isToBeLeft = (): boolean =>
      readFileSync(join(agent.storeDir, 'domains', `${uuid}.json`), 'utf8').includes('"kind": "failover"');
    // Its first step may be another disk's.
    while (!isToBeLeft()) {
      const dying = await lab.agent({ config, env: { VIRT_CDP_TEST_DIE_AFTER_STEPS: '1' } });
      await waitFor('the agent to die', () => !existsSync(`/proc/${dying.pid}`), patienceMs);
    }

    const pipe = lab.path('old2-save');
    await run('mkfifo', [pipe]);
    const reader = await open(pipe, constants.O_RDWR | constants.O_NONBLOCK);
    const saved = lab.libvirtd.virsh('save', 'old2', pipe);
    await old2.waitState('paused (saving)', patienceMs);
    await agent.start();
    await waitFor(
      'the save to be cancelled',
      async () => {
        await reader.read({ buffer: Buffer.alloc(1 << 16) }).catch(() => undefined);
        return (await events(agent, 'old2', 'migration-cancelled')).length > 0;
      },
      patienceMs,
    );
    await reader.close();
    assert.notEqual((await saved).code, 0);
    await waitState(agent, 'old2', 'failed-over');
    await goesOn(old2);
    assert.deepEqual((await old2.witness.checkCopy(other.file, 'vda')).missing, []);
  });
});
