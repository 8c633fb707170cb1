import assert from 'node:assert/strict';
import { FuseFile } from '../lab/fuse-file.ts';
import type { Guest } from '../lab/guest.ts';
import type { NbdServer } from '../lab/storage.ts';
import { waitFor } from '../lab/wait.ts';
import { assertNothingLost, endWell, goesOn } from './copies-hold.ts';
import { events, patienceMs, setScene, status, waitState } from './scene.ts';

/** A QEMU whose main thread waits for the file too can't say it itself: then libvirt says that it gave it up. */
const killed = /terminating on|shutting down, reason=destroyed/;

describe('a copy that neither answers nor fails', function () {
  this.timeout(150_000);
  const scene = setScene({ config: { mirror: { timeout_ms: 1000 }, on_hang: 'restart' } });

  describe('on a server', () => {
    let guest: Guest;
    let primary: NbdServer;
    let mirror: NbdServer;

    before(async () => {
      primary = await scene.lab.nbd({ name: 'web-primary' });
      mirror = await scene.lab.nbd({ name: 'web-mirror' });
      guest = await scene.residentGuest({
        name: 'web',
        disks: [{ dev: 'vda', bus: 'virtio', image: { format: 'raw', nbd: primary.address } }],
        cmdline: 'witness.rate=50',
      });
      await scene.agent.mustCdp('protect', 'web', '--disk', 'vda', '--mirror', mirror.uri);
      await goesOn(guest);
    });

    it('is left if it is the mirror, and brought up to date when the server goes on', async () => {
      const { agent } = scene;
      mirror.hang();
      const exposed = await waitState(agent, 'web', 'exposed');
      assert.deepEqual([exposed.runningOn, exposed.mirror.current], ['primary', false]);
      await goesOn(guest);
      await assertNothingLost(guest, [primary.file]);
      const [told] = await events(agent, 'web', 'hang');
      assert.equal(told?.detail['side'], 'mirror');

      mirror.unhang();
      await waitState(agent, 'web', 'protected');
      await goesOn(guest);
    });

    it('is left if it is the primary: the guest goes on with the mirror, and moves back when the server goes on', async () => {
      const { agent } = scene;
      primary.hang();
      const moved = await waitState(agent, 'web', 'failed-over');
      assert.deepEqual([moved.primary.current, moved.mirror.current], [false, true]);
      await goesOn(guest);
      await assertNothingLost(guest, [mirror.file]);
      assert.equal((await events(agent, 'web', 'hang')).at(-1)?.detail['side'], 'primary');

      primary.unhang();
      await agent.mustCdp('rebuild', 'web', '--to', 'original');
      await waitState(agent, 'web', 'protected');
      await goesOn(guest);
      assert.equal(guest.witness.boots, 1);
      await endWell(guest, [primary.file, mirror.file]);
      assert.equal((await status(agent, 'web')).disks[0]?.primary.current, true);
    });
  });

  describe('in a file', () => {
    let guest: Guest;
    let shown: FuseFile;
    let mirror: NbdServer;

    before(async () => {
      const { lab, agent } = scene;
      const server = await lab.nbd({ name: 'db-primary' });
      mirror = await lab.nbd({ name: 'db-mirror' });
      shown = await FuseFile.mount(lab, 'db.raw', server);
      guest = await scene.residentGuest({
        name: 'db',
        disks: [{ dev: 'vda', bus: 'virtio', image: { format: 'raw', file: shown.path }, cache: 'none' }],
        cmdline: 'witness.rate=20',
      });
      await agent.mustCdp('protect', 'db', '--disk', 'vda', '--mirror', mirror.uri);
      await goesOn(guest);
    });

    after(async () => shown.unmount());

    it('is told of while the guest waits for it, and goes on with the file', async () => {
      const { agent } = scene;
      shown.hang();
      const waiting = await waitState(agent, 'db', 'waiting');
      assert.match(
        waiting.reason ?? '',
        /the primary has not answered since .*virsh destroy db, then virt-cdp start db/,
      );
      assert.deepEqual([waiting.primary.reachable, waiting.runningOn], [false, 'both']);
      shown.unhang();
      await waitState(agent, 'db', 'protected');
      await goesOn(guest);
      assert.equal(guest.witness.boots, 1);
    });

    it('costs the guest a reboot, if the configuration says so, and no write: it starts from the mirror', async () => {
      const { agent } = scene;
      shown.hang();
      await waitFor('QEMU to be killed', () => Promise.resolve(killed.test(guest.qemuLog())), patienceMs);
      await shown.abort();
      await guest.witness.waitReady(patienceMs, 2);
      const moved = await waitState(agent, 'db', 'failed-over');
      assert.deepEqual([moved.primary.current, moved.mirror.current], [false, true]);
      await goesOn(guest);
      await assertNothingLost(guest, [mirror.file]);
      assert.ok((await events(agent, 'db', 'hang')).some(({ detail }) => detail['restarts'] === true));
    });
  });
});
