import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { FuseFile } from '../lab/fuse-file.ts';
import type { Guest } from '../lab/guest.ts';
import { IscsiTarget } from '../lab/iscsi.ts';
import { defineSecret } from '../lab/secret.ts';
import type { NbdServer } from '../lab/storage.ts';
import { waitFor } from '../lab/wait.ts';
import { assertNothingLost, endWell, goesOn } from './copies-hold.ts';
import { events, patienceMs, roots, setScene, status, waitDisk, waitState } from './scene.ts';

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
      mirror = await scene.lab.nbd({ name: 'web-mirror', listen: { port: 0 } });
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

    it('is left, too, if QEMU waits for it with its monitor, because somebody wants the guest suspended', async () => {
      const { agent, lab } = scene;
      mirror.hang();
      await lab.libvirtd.mustVirsh('suspend', 'web');
      await waitState(agent, 'web', 'exposed');
      await lab.libvirtd.mustVirsh('resume', 'web');
      await goesOn(guest);
      await assertNothingLost(guest, [primary.file]);

      mirror.unhang();
      await waitState(agent, 'web', 'protected');
    });

    it('makes a guest with policy strict wait if it is the mirror, told and parked, until the server goes on', async () => {
      const { agent } = scene;
      await givePolicy('strict');
      const before = (await events(agent, 'web')).length;
      mirror.hang();
      await waitDisk(agent, 'web', 'paused for its mirror', ({ state, reason }) => {
        return state === 'waiting' && /policy strict: the guest is paused/.test(reason ?? '');
      });
      assert.deepEqual(await roots(guest), ['cdp-vda-park']);
      assert.match(await guest.state(), /^paused/);
      assert.equal((await events(agent, 'web', 'hang')).at(-1)?.detail['side'], 'mirror');
      // It was told of no write that the mirror does not have.
      await assertNothingLost(guest, [primary.file, mirror.file]);

      mirror.unhang();
      await waitState(agent, 'web', 'protected');
      const told = (await events(agent, 'web')).slice(before);
      assert.ok(!told.some(({ to }) => to === 'exposed'), JSON.stringify(told));
      await goesOn(guest);
      await givePolicy('available');
    });

    async function givePolicy(policy: 'available' | 'strict'): Promise<void> {
      const { agent, lab } = scene;
      const path = lab.path('web.xml');
      writeFileSync(path, (await guest.xml('--inactive')).replace(/policy=(["'])\w+/, `policy=$1${policy}`));
      await lab.virsh('define', path);
      await waitFor(`the policy ${policy}`, async () => (await status(agent, 'web')).policy === policy, patienceMs);
    }

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

  describe('that QEMU can not let go of: the primary, in a file or on an iSCSI target', () => {
    const password = 'sesame-open-44';
    let db: Guest;
    let shown: FuseFile;
    let dbMirror: NbdServer;
    let mail: Guest;
    let mailMirror: NbdServer;
    let target: IscsiTarget;

    before(async () => {
      await Promise.all([beginDb(), beginMail()]);
    });

    after(async () => {
      await shown.unmount();
      await target.close();
    });

    async function beginDb(): Promise<void> {
      const { lab, agent } = scene;
      const server = await lab.nbd({ name: 'db-primary' });
      dbMirror = await lab.nbd({ name: 'db-mirror' });
      shown = await FuseFile.mount(lab, 'db.raw', server);
      db = await scene.residentGuest({
        name: 'db',
        disks: [{ dev: 'vda', bus: 'virtio', image: { format: 'raw', file: shown.path }, cache: 'none' }],
        cmdline: 'witness.rate=20',
      });
      await agent.mustCdp('protect', 'db', '--disk', 'vda', '--mirror', dbMirror.uri);
      await goesOn(db);
    }

    async function beginMail(): Promise<void> {
      const { lab, agent } = scene;
      const sizeBytes = 16 << 20;
      const { file } = await lab.image('lun.img', 'raw', sizeBytes);
      const login = { username: 'cdp', password };
      target = await IscsiTarget.start({ scratch: lab.root, namespace: lab.libvirtd.namespace, file, login });
      await defineSecret(lab, { type: 'iscsi', usage: 'lun', base64: Buffer.from(password).toString('base64') });
      mailMirror = await lab.nbd({ name: 'mail-mirror', sizeBytes });
      mail = await scene.residentGuest({
        name: 'mail',
        disks: [{ dev: 'vda', bus: 'virtio', image: { format: 'raw', networkXml: target.sourceXml('lun') } }],
        cmdline: 'witness.rate=20',
      });
      await agent.mustCdp('protect', 'mail', '--disk', 'vda', '--mirror', mailMirror.uri);
      await goesOn(mail);
    }

    it('is told of while the guest waits for it, and goes on with its storage', async () => {
      const { agent } = scene;
      shown.hang();
      target.hang();
      for (const name of ['db', 'mail']) {
        const { reason, primary, runningOn } = await waitState(agent, name, 'waiting');
        const told = `the primary has not answered since .*virsh destroy ${name}, then virt-cdp start ${name}`;
        assert.match(reason ?? '', new RegExp(told));
        assert.deepEqual([primary.reachable, runningOn], [false, 'both']);
      }
      shown.unhang();
      target.unhang();
      for (const guest of [db, mail]) {
        await waitState(agent, guest.name, 'protected');
        await goesOn(guest);
        assert.equal(guest.witness.boots, 1);
      }
    });

    it('costs the guest a reboot, if the configuration says so, and no write: it starts from the other copy', async () => {
      const { agent } = scene;
      shown.hang();
      target.hang();
      await waitFor('QEMU to be killed', () => Promise.resolve(killed.test(db.qemuLog())), patienceMs);
      await shown.abort();
      for (const [guest, mirror] of [
        [db, dbMirror],
        [mail, mailMirror],
      ] as const) {
        await guest.witness.waitReady(patienceMs, 2);
        const moved = await waitState(agent, guest.name, 'failed-over');
        assert.deepEqual([moved.primary.current, moved.mirror.current], [false, true]);
        await goesOn(guest);
        await assertNothingLost(guest, [mirror.file]);
        assert.ok((await events(agent, guest.name, 'hang')).some(({ detail }) => detail['restarts'] === true));
      }
    });
  });
});
