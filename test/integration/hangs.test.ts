import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { send } from '../../src/control/transport.ts';
import { tinyDomainXml } from '../lab/boot-sector.ts';
import { FreezableFolder } from '../lab/freezable.ts';
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

  /** The server was asked since it is in use, and not in vain. */
  async function hasAnswered(name: string): Promise<boolean> {
    const socketPath = scene.agent.socket;
    const { text } = await send({ socketPath, method: 'GET', path: '/metrics', deadlineMs: patienceMs });
    return new RegExp(`backend_probe_seconds\\{.*${name}`).test(text);
  }

  describe('on a server', () => {
    let guest: Guest;
    let primary: NbdServer;
    let mirror: NbdServer;
    let folders: Record<'primary' | 'mirror', FreezableFolder>;

    before(async () => {
      folders = { primary: await folder('primary'), mirror: await folder('mirror') };
      primary = await serve('primary');
      mirror = await serve('mirror');
      guest = await scene.residentGuest({
        name: 'web',
        disks: [{ dev: 'vda', bus: 'virtio', image: { format: 'raw', nbd: primary.address } }],
        cmdline: 'witness.rate=50',
      });
      await scene.agent.mustCdp('protect', 'web', '--disk', 'vda', '--mirror', mirror.uri);
      await goesOn(guest);
    });

    after(async () => {
      for (const each of Object.values(folders)) await each.thaw();
    });

    const folder = (side: string): Promise<FreezableFolder> =>
      FreezableFolder.mount(scene.lab, scene.lab.path(side), 96 << 20);

    async function serve(side: 'primary' | 'mirror'): Promise<NbdServer> {
      const file = await folders[side].image('web.img', 64 << 20);
      return scene.lab.nbd({ name: `web-${side}`, listen: { port: 0 }, file });
    }

    /** By another process: what the former one was at is done, and it may not have survived so many broken connections. */
    async function goOn(side: 'primary' | 'mirror'): Promise<void> {
      await folders[side].thaw();
      await (side === 'primary' ? primary : mirror).restart();
    }

    /** As this process sees it, also while nobody is served. */
    const fileOf = ({ pid, file }: NbdServer): string => `/proc/${pid}/root${file}`;

    it('is left if it is the mirror, and brought up to date when the server goes on', async () => {
      const { agent } = scene;
      mirror.hang();
      const exposed = await waitState(agent, 'web', 'exposed');
      assert.deepEqual([exposed.runningOn, exposed.mirror.current], ['primary', false]);
      await goesOn(guest);
      await assertNothingLost(guest, [fileOf(primary)]);
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
      await assertNothingLost(guest, [fileOf(primary)]);

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
      await assertNothingLost(guest, [fileOf(primary), fileOf(mirror)]);

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

    it('is left, too, if the mirror hangs with writes alone, and the primary stays', async () => {
      const { agent } = scene;
      await folders.mirror.freeze();
      const exposed = await waitState(agent, 'web', 'exposed');
      assert.deepEqual([exposed.primary.current, exposed.mirror.current], [true, false]);
      await goesOn(guest);
      assert.equal((await events(agent, 'web', 'hang')).at(-1)?.detail['side'], 'mirror');
    });

    for (const [what, kind, ...full] of [
      ['what it lacks', 'delta-sync'],
      ['everything', 'full-sync', '--full'],
    ] as const)
      it(`is left, too, while it gets ${what}, and the guest goes on`, async () => {
        const { agent } = scene;
        const hangs = (await events(agent, 'web', 'hang')).length;
        await agent.mustCdp('resync', 'web', ...full, '--no-wait');
        await waitDisk(agent, 'web', `at its ${kind}`, ({ job }) => job?.kind === kind);
        await waitDisk(agent, 'web', 'exposed', ({ state, job, reason }) => {
          const told = /answers, but kept QEMU waiting: .*virt-cdp resync web/.test(reason ?? '');
          return state === 'exposed' && job === null && told;
        });
        const [hang] = (await events(agent, 'web', 'hang')).slice(hangs);
        assert.equal(hang?.detail['side'], 'mirror');
        await goesOn(guest);
      });

    it('is brought up to date on request when it takes writes again', async () => {
      const { agent } = scene;
      await goOn('mirror');
      await agent.mustCdp('resync', 'web');
      await waitState(agent, 'web', 'protected');
      await goesOn(guest);
      await assertNothingLost(guest, [fileOf(primary), fileOf(mirror)]);
    });

    it('is left, too, if the primary hangs with writes alone: not the mirror', async () => {
      const { agent } = scene;
      const before = (await events(agent, 'web')).length;
      await folders.primary.freeze();
      const moved = await waitState(agent, 'web', 'failed-over');
      assert.deepEqual([moved.primary.current, moved.mirror.current], [false, true]);
      await goesOn(guest);
      await assertNothingLost(guest, [fileOf(mirror)]);
      const told = (await events(agent, 'web')).slice(before);
      assert.deepEqual(
        told.flatMap(({ event, detail }) => (event === 'hang' ? detail['side'] : [])),
        ['primary'],
      );
      assert.ok(!told.some(({ event }) => event === 'mirror-lost'), JSON.stringify(told));

      await goOn('primary');
      await agent.mustCdp('rebuild', 'web', '--to', 'original');
      await waitState(agent, 'web', 'protected');
      await goesOn(guest);
    });

    it('is left if it is the primary: the guest goes on with the mirror, and moves back when the server goes on', async () => {
      const { agent } = scene;
      primary.hang();
      const moved = await waitState(agent, 'web', 'failed-over');
      assert.deepEqual([moved.primary.current, moved.mirror.current], [false, true]);
      await goesOn(guest);
      await assertNothingLost(guest, [fileOf(mirror)]);
      assert.equal((await events(agent, 'web', 'hang')).at(-1)?.detail['side'], 'primary');

      primary.unhang();
      await agent.mustCdp('rebuild', 'web', '--to', 'original');
      await waitState(agent, 'web', 'protected');
      await goesOn(guest);
      assert.equal(guest.witness.boots, 1);
      await endWell(guest, [fileOf(primary), fileOf(mirror)]);
      assert.equal((await status(agent, 'web')).disks[0]?.primary.current, true);
    });
  });

  it('is left if it is the mirror of a guest that asks nothing of it', async () => {
    const { lab, agent } = scene;
    // No boot sector: it stands still in its BIOS.
    const primary = await lab.nbd({ name: 'idle-primary', sizeBytes: 1 << 20 });
    const mirror = await lab.nbd({ name: 'idle-mirror', sizeBytes: 1 << 20 });
    if (!('socket' in primary.address)) throw new Error('the lab serves on unix sockets');
    writeFileSync(lab.path('idle.xml'), tinyDomainXml('idle', primary.address));
    await lab.virsh('define', lab.path('idle.xml'));
    await lab.virsh('start', 'idle');
    await agent.mustCdp('protect', 'idle', '--disk', 'vda', '--mirror', mirror.uri);
    // What never answered may be a server for QEMU alone.
    await waitFor('the mirror to have answered the agent', () => hasAnswered('idle-mirror'), patienceMs);
    mirror.hang();
    await waitState(agent, 'idle', 'exposed');
    assert.deepEqual(
      (await events(agent, 'idle', 'hang')).map(({ detail }) => detail['side']),
      ['mirror'],
    );
    // Which would wait for it, with QEMU's monitor.
    await lab.virsh('suspend', 'idle');
    await lab.virsh('resume', 'idle');
    mirror.unhang();
    await waitState(agent, 'idle', 'protected');
    await lab.virsh('destroy', 'idle');
  });

  describe('that QEMU can not let go of: the primary, in a file or on an iSCSI target', () => {
    const password = 'sesame-open-44';
    let db: Guest;
    let folder: FreezableFolder;
    let shown: FuseFile;
    let dbMirror: NbdServer;
    let mail: Guest;
    let mailMirror: NbdServer;
    let target: IscsiTarget;

    before(async () => {
      await Promise.all([beginDb(), beginMail()]);
    });

    after(async () => {
      await folder.thaw();
      await shown.unmount();
      await target.close();
    });

    async function beginDb(): Promise<void> {
      const { lab, agent } = scene;
      folder = await FreezableFolder.mount(lab, lab.path('db'), 96 << 20);
      const server = await lab.nbd({ name: 'db-primary', file: await folder.image('db.img', 64 << 20) });
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
      // The one hangs with writes alone.
      await folder.freeze();
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
        const hangs = (await events(agent, guest.name, 'hang')).map(({ detail }) => detail);
        assert.ok(hangs.some(({ restarts }) => restarts === true));
        assert.ok(
          hangs.every(({ side }) => side === 'primary'),
          JSON.stringify(hangs),
        );
      }
    });
  });
});
