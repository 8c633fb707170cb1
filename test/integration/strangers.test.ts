import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { LibvirtClient } from '../../src/libvirt/client.ts';
import { compareCopies } from '../lab/copies.ts';
import type { Guest } from '../lab/guest.ts';
import { must } from '../lab/run.ts';
import type { NbdServer } from '../lab/storage.ts';
import { assertNothingLost, endWell, goesOn } from './copies-hold.ts';
import { patienceMs, roots, setScene, status, waitDisk, waitState } from './scene.ts';

describe('strangers', function () {
  this.timeout(150_000);
  const scene = setScene({ config: { resync: { max_bytes_per_s: 16 << 20 } } });

  interface Pair {
    guest: Guest;
    primary: NbdServer;
    mirror: NbdServer;
  }

  async function unprotectedGuest(name: string, { rate = 100, iothread = false } = {}): Promise<Pair> {
    const primary = await scene.lab.nbd({ name: `${name}-primary` });
    const mirror = await scene.lab.nbd({ name: `${name}-mirror` });
    const image = { format: 'raw' as const, nbd: primary.address };
    const guest = await scene.guest({
      name,
      cmdline: `witness.blocks=8000 witness.rate=${rate} witness.depth=${iothread ? 4 : 1}`,
      disks: [{ dev: 'vda', bus: 'virtio', iothread, image }],
    });
    return { guest, primary, mirror };
  }

  async function protectedGuest(name: string, options = {}): Promise<Pair> {
    const pair = await unprotectedGuest(name, options);
    await scene.agent.mustCdp('protect', name, '--disk', 'vda', '--mirror', pair.mirror.uri);
    await goesOn(pair.guest, 20);
    return pair;
  }

  it('who resume the domain again and again during surgeries lose nothing', async () => {
    const { agent, lab } = scene;
    const { guest, primary, mirror } = await protectedGuest('web1', { iothread: true });
    const surgeries = new AbortController();
    const client = await LibvirtClient.connect({ socketPath: lab.libvirtd.socket });
    const web1 = await client.lookupByName('web1');
    const stranger = (async () => {
      for (let n = 0; !surgeries.signal.aborted; n++) {
        // Nearly all are refused, because the domain runs; agent-crash.test.ts has resumes that hit a surgery for sure.
        await client.resume(web1).catch(() => undefined);
        // A guest that goes on within milliseconds of each pause can't be parked at all.
        await sleep([2, 20, 200][n % 3]);
      }
      await client.close();
    })();
    try {
      for (let round = 1; round <= 6; round++) {
        await agent.mustCdp('hold', 'web1');
        await goesOn(guest, 5);
        await agent.mustCdp('release', 'web1');
        await goesOn(guest, 5);
      }
    } finally {
      surgeries.abort();
      await stranger;
    }
    await waitState(agent, 'web1', 'protected');
    await goesOn(guest, 20);
    await endWell(guest, [primary.file, mirror.file]);
  });

  it('who suspend the domain find it suspended after a failover', async () => {
    const { agent } = scene;
    const { guest, mirror } = await protectedGuest('web2');
    await guest.suspend();
    const acknowledged = guest.witness.acknowledged();
    await agent.mustCdp('failover', 'web2');
    await waitDisk(agent, 'web2', 'on its mirror', ({ runningOn }) => runningOn === 'mirror');
    assert.match(await guest.state(), /^paused \(user\)/);
    assert.equal(guest.witness.acknowledged(), acknowledged);
    await guest.resume();
    await goesOn(guest, 50);
    await endWell(guest, [mirror.file]);
  });

  it('who suspend the domain and then break its primary find it moved when they resume it', async () => {
    const { agent } = scene;
    const { guest, primary, mirror } = await protectedGuest('web3');
    await guest.suspend();
    primary.failAll();
    await guest.resume();
    await waitState(agent, 'web3', 'failed-over');
    await goesOn(guest, 50);
    await endWell(guest, [mirror.file]);
  });

  it('who restart libvirtd, while protected and in mid-sync, do not keep the domain from failing over', async () => {
    const { agent, lab } = scene;
    const { guest, primary, mirror } = await unprotectedGuest('web4', { rate: 50 });
    // So much that its sync takes some seconds, even at a guest's first start.
    await must('dd', 'if=/dev/urandom', `of=${primary.file}`, 'bs=1M', 'count=30', 'seek=34', 'conv=notrunc');
    await agent.mustCdp('protect', 'web4', '--disk', 'vda', '--mirror', mirror.uri, '--no-wait');
    await waitDisk(agent, 'web4', 'in mid-sync', ({ job }) => job !== null);
    await lab.libvirtd.restart('SIGKILL');
    await waitState(agent, 'web4', 'protected');
    await goesOn(guest, 20);

    await lab.libvirtd.restart('SIGTERM');
    await goesOn(guest, 20);
    primary.failAll();
    await waitState(agent, 'web4', 'failed-over');
    await goesOn(guest, 50);
    await agent.mustCdp('rebuild', 'web4', '--to', lab.path('web4-new.raw'));
    await goesOn(guest, 50);
    await endWell(guest, [lab.path('web4-new.raw'), mirror.file]);
  });

  it('whose restart of libvirtd coincides with the failure of the primary only delay the failover', async () => {
    const { agent, lab } = scene;
    const { guest, primary, mirror } = await protectedGuest('web5');
    await lab.libvirtd.stop('SIGKILL');
    primary.failAll();
    await lab.libvirtd.restart();
    await waitState(agent, 'web5', 'failed-over');
    await goesOn(guest, 50);
    await endWell(guest, [mirror.file]);
  });

  it('who take a snapshot while the domain is protected keep its mirror complete', async () => {
    const { agent, lab } = scene;
    const { guest, primary, mirror } = await protectedGuest('web6');
    const overlay = lab.path('web6.overlay');
    await guest.takeSnapshot(overlay);
    await goesOn(guest, 50);
    assert.equal((await status(agent, 'web6')).state, 'protected');
    await waitDisk(agent, 'web6', 'on the overlay', ({ primary: { source } }) => source === overlay);

    // The overlay has to read it.
    primary.failAll();
    await waitState(agent, 'web6', 'failed-over');
    await goesOn(guest, 50);
    await endWell(guest, [mirror.file]);
  });

  it('who save and restore the domain find it protected again', async () => {
    const { agent, lab } = scene;
    const { guest, primary, mirror } = await protectedGuest('web9');
    for (const state of ['protected', 'exposed'] as const) {
      if (state === 'exposed') mirror.failAll();
      await waitState(agent, 'web9', state);
      await lab.virsh('save', 'web9', lab.path('web9.save'));
      await lab.virsh('restore', lab.path('web9.save'));
      mirror.heal();
      await goesOn(guest, 20);
      await waitState(agent, 'web9', 'protected');
    }
    await endWell(guest, [primary.file, mirror.file]);
  });

  it('who reset the domain leave it protected, with equal copies, also when that drops a write that one copy has', async () => {
    const { agent, lab } = scene;
    const { guest, primary, mirror } = await protectedGuest('web7');
    await guest.reset();
    await goesOn(guest, 20);
    await waitState(agent, 'web7', 'protected');
    assert.deepEqual(await roots(guest), ['cdp-vda']);

    // While nobody looks a write reaches the primary alone, and the reset drops it.
    await agent.kill('SIGKILL');
    mirror.failWrites();
    await guest.waitState('paused', patienceMs);
    await lab.virsh('reset', 'web7');
    mirror.heal();
    assert.equal((await compareCopies(primary.file, mirror.file)).identical, false, 'no write was half done');
    await agent.start();
    await guest.witness.waitReady(patienceMs, 3);
    await goesOn(guest, 5);
    await waitState(agent, 'web7', 'protected');
    await endWell(guest, [primary.file, mirror.file]);
  });

  it('who reset the domain while it waits for a failed write have it moved all the same', async () => {
    const { agent } = scene;
    const { guest, primary, mirror } = await protectedGuest('web8');
    await agent.kill('SIGKILL');
    primary.failAll();
    await guest.waitState('paused', patienceMs);
    await scene.lab.virsh('reset', 'web8');
    await agent.start();
    await waitState(agent, 'web8', 'failed-over');
    await guest.witness.waitReady(patienceMs, 2);
    await goesOn(guest, 20);
    primary.heal();
    await agent.mustCdp('rebuild', 'web8', '--to', 'original');
    await endWell(guest, [primary.file, mirror.file]);
  });

  it('who reset the domain while it waits because both copies fail have it boot when a current copy answers', async () => {
    const { agent, lab } = scene;
    const primary = await lab.nbd({ name: 'web10-primary' });
    const mirror = await lab.nbd({ name: 'web10-mirror' });
    const image = { format: 'raw' as const, nbd: primary.address };
    const disk = { dev: 'vda', bus: 'virtio' as const, image };
    const guest = await scene.guest({ name: 'web10', cmdline: 'witness.rate=50', disks: [disk] });
    await agent.mustCdp('protect', 'web10', '--disk', 'vda', '--mirror', mirror.uri);
    await goesOn(guest);
    mirror.failAll();
    primary.failAll();
    await waitState(agent, 'web10', 'broken');
    await lab.virsh('reset', 'web10');
    assert.equal((await status(agent, 'web10')).state, 'broken');
    primary.heal();
    mirror.heal();
    await guest.witness.waitReady(patienceMs, 2);
    await waitState(agent, 'web10', 'protected');
    await goesOn(guest, 20);
    await endWell(guest, [primary.file, mirror.file]);
  });

  it('of two disks only the one that fails is moved', async () => {
    const { agent, lab } = scene;
    const servers = await Promise.all(
      ['vda', 'vda-mirror', 'vdb', 'vdb-mirror'].map((name) => lab.nbd({ name: `db1-${name}`, sizeBytes: 32 << 20 })),
    );
    const [vda, vdaMirror, vdb, vdbMirror] = servers as [NbdServer, NbdServer, NbdServer, NbdServer];
    const guest = await scene.guest({
      name: 'db1',
      cmdline: 'witness.rate=50',
      disks: [
        { dev: 'vda', bus: 'virtio', image: { format: 'raw', nbd: vda.address } },
        { dev: 'vdb', bus: 'virtio', image: { format: 'raw', nbd: vdb.address } },
      ],
    });
    await agent.mustCdp('protect', 'db1', '--disk', 'vda', '--mirror', vdaMirror.uri);
    await agent.mustCdp('protect', 'db1', '--disk', 'vdb', '--mirror', vdbMirror.uri);
    for (const dev of ['vda', 'vdb']) await goesOn(guest, 20, dev);

    vdb.failAll();
    await waitState(agent, 'db1', 'failed-over', 'vdb');
    await waitState(agent, 'db1', 'protected', 'vda');
    assert.equal((await status(agent, 'db1')).state, 'failed-over');
    for (const dev of ['vda', 'vdb']) await goesOn(guest, 20, dev);
    vdaMirror.failAll();
    await waitState(agent, 'db1', 'exposed', 'vda');
    for (const dev of ['vda', 'vdb']) await goesOn(guest, 20, dev);
    vdaMirror.heal();
    await waitState(agent, 'db1', 'protected', 'vda');
    await waitState(agent, 'db1', 'failed-over', 'vdb');

    await guest.shutdown();
    await assertNothingLost(guest, [vda.file, vdaMirror.file], 'vda');
    await assertNothingLost(guest, [vdbMirror.file], 'vdb');
  });
});
