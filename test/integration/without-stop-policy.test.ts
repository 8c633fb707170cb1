import assert from 'node:assert/strict';
import type { Guest } from '../lab/guest.ts';
import type { NbdServer } from '../lab/storage.ts';
import { assertIdentical, assertNothingLost, goesOn } from './copies-hold.ts';
import { events, roots, setScene, status, waitDisk, waitState } from './scene.ts';

const sizeBytes = 32 << 20;

/** Slow enough to be met at it. */
const copyBytesPerS = 8 << 20;

describe('a guest that is told of I/O errors', function () {
  this.timeout(150_000);
  const scene = setScene({ config: { resync: { max_bytes_per_s: copyBytesPerS }, mirror: { timeout_ms: 1000 } } });
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
});
