import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { epochName, epochPrefix, epochStart } from '../../src/graph/names.ts';
import type { JobStatus } from '../../src/protection/model.ts';
import type { Guest } from '../lab/guest.ts';
import { recordSize } from '../lab/record.ts';
import type { NbdServer } from '../lab/storage.ts';
import { waitFor } from '../lab/wait.ts';
import { assertNothingLost, endWell, goesOn, Mark, writeBlock } from './copies-hold.ts';
import {
  events,
  liveStatus,
  patienceMs,
  roots,
  setScene,
  status,
  waitDisk,
  waitLiveStatus,
  waitState,
} from './scene.ts';

/** The guest writes to the first three quarters of its 64 MiB; marks go behind. */
const guestBlocks = 12_288;
const markBlock = 14_000;

/** A bit of a bitmap stands for so much. */
const granularity = 65_536;

describe('an outage of the mirror', function () {
  this.timeout(150_000);
  // A delta of some MiB takes a second, so that it can be looked at. The guest must not write faster: 100 records, 6.4 MiB.
  const scene = setScene({ config: { resync: { max_bytes_per_s: 24 << 20 } } });

  interface Protected {
    guest: Guest;
    primary: string;
    mirror: NbdServer;
  }

  /** A guest on a raw file, with a mirror on an NBD server. */
  async function protectedGuest(name: string, options: string[] = []): Promise<Protected> {
    const image = await scene.lab.image(`${name}.raw`);
    const mirror = await scene.lab.nbd({ name: `${name}-mirror` });
    const guest = await scene.guest({
      name,
      disks: [{ dev: 'vda', bus: 'virtio', image }],
      cmdline: `witness.blocks=${guestBlocks} witness.rate=100`,
    });
    await scene.agent.mustCdp('protect', name, '--disk', 'vda', '--mirror', mirror.uri, ...options);
    await goesOn(guest);
    return { guest, primary: image.file, mirror };
  }

  /** Read again by the agent that runs, and by the next. */
  function limitResync(maxBytesPerS: number): void {
    const { configPath } = scene.agent;
    const text = readFileSync(configPath, 'utf8');
    writeFileSync(configPath, text.replace(/max_bytes_per_s = \d+/, `max_bytes_per_s = ${maxBytesPerS}`));
  }

  it('costs the guest nothing, and is mended by a delta when the server heals', async () => {
    const { agent } = scene;
    const { guest, primary, mirror } = await protectedGuest('web1');

    mirror.failAll();
    const exposed = await waitState(agent, 'web1', 'exposed');
    assert.deepEqual([exposed.runningOn, exposed.mirror.current], ['primary', false]);
    assert.notEqual(exposed.exposedSince, null);
    assert.equal((await waitLiveStatus(guest, 'exposed')).runningOn, 'primary');
    await goesOn(guest, 300);
    await assertNothingLost(guest, [primary]);

    const mark = new Mark(mirror.file, markBlock);
    await mark.set();
    mirror.heal();
    const jobs: JobStatus[] = [];
    await waitDisk(agent, 'web1', 'protected again', ({ state, job }) => {
      if (job !== null) jobs.push(job);
      return state === 'protected';
    });
    assert.ok(jobs.length > 0, 'no job was seen');
    for (const { kind, total } of jobs) {
      assert.equal(kind, 'delta-sync');
      assert.ok(total < guestBlocks * recordSize, `a delta of ${total} bytes`);
    }
    assert.equal(await mark.isThere(), true, 'the whole mirror was written');
    await mark.clear();
    await goesOn(guest, 100);
    await endWell(guest, [primary, mirror.file]);
  });

  /**
   * Gives the pair an epoch that is due to end, with 16 MiB more in it than was written: they would be sent by a delta. Waits until it
   * has ended, because both copies have flushed what it recorded.
   */
  async function endEpochOfMuch(guest: Guest): Promise<void> {
    const [present, ...others] = await epochs(guest);
    assert.ok(present !== undefined && others.length === 0);
    const old = epochName(epochStart(present) - 15 * 60_000);
    await guest.qmp('blockdev-add', { driver: 'null-co', 'node-name': 'much', size: 64 << 20 });
    await guest.qmp('block-dirty-bitmap-add', { node: 'much', name: 'much', granularity });
    await guest.qmp('human-monitor-command', { 'command-line': 'qemu-io much "write 32M 16M"' });
    const at = { node: 'cdp-vda' };
    await guest.qmp('block-dirty-bitmap-add', { ...at, name: old, granularity });
    const bitmaps = [present, { node: 'much', name: 'much' }];
    await guest.qmp('block-dirty-bitmap-merge', { ...at, target: old, bitmaps });
    await guest.qmp('block-dirty-bitmap-remove', { ...at, name: present });
    await guest.qmp('blockdev-del', { 'node-name': 'much' });
    await waitFor(
      'another epoch in the place of the old one',
      async () => {
        // The agent looks when something happens.
        await guest.suspend();
        await guest.resume();
        await goesOn(guest, 2);
        const now = await epochs(guest);
        return now.length === 1 && now[0] !== old;
      },
      patienceMs,
      async () => (await epochs(guest)).join(),
    );
  }

  async function epochs(guest: Guest): Promise<string[]> {
    const nodes = (await guest.qmp('query-named-block-nodes', { flat: true })) as {
      'node-name': string;
      'dirty-bitmaps'?: { name: string }[];
    }[];
    const pair = nodes.find((node) => node['node-name'] === 'cdp-vda');
    return (pair?.['dirty-bitmaps'] ?? []).map(({ name }) => name).filter((name) => name.startsWith(epochPrefix));
  }

  it('sends its mirror what was changed and little more, also when the agent is killed in the middle of the delta', async () => {
    const { agent, lab } = scene;
    const image = await lab.image('web6.raw');
    const logFile = lab.path('web6-mirror.log');
    const mirror = await lab.nbd({ name: 'web6-mirror', logFile });
    const sentBytes = (): number => {
      const counts = readFileSync(logFile, 'latin1').matchAll(/ (?:Write|Zero) id=\d+ offset=\S+ count=(0x[0-9a-f]+)/g);
      return [...counts].reduce((sum, [, count]) => sum + Number(count), 0);
    };
    const disks = [{ dev: 'vda', bus: 'virtio' as const, image }];
    // 6 MiB of 64, so that a delta lasts, and few writes during it.
    const guest = await scene.guest({ name: 'web6', disks, cmdline: 'witness.blocks=1536 witness.rate=20' });
    const changed = new Set<number>();
    let writes = 0;
    const unsubscribe = guest.witness.onAck(({ block }) => {
      writes += 1;
      changed.add(Math.floor((block * recordSize) / granularity));
    });
    await agent.mustCdp('protect', 'web6', '--disk', 'vda', '--mirror', mirror.uri);
    changed.clear();
    await endEpochOfMuch(guest);

    for (const agentDies of [false, true]) {
      mirror.failAll();
      await waitState(agent, 'web6', 'exposed');
      await goesOn(guest, 40);
      const before = sentBytes();
      const [changedBytes, writesBefore] = [changed.size * granularity, writes];
      if (agentDies) limitResync(2 << 20);
      // The next epoch begins when the mirror is armed again.
      changed.clear();
      mirror.heal();
      if (agentDies) {
        await waitDisk(agent, 'web6', 'in a delta', ({ job }) => job?.kind === 'delta-sync');
        await agent.restart('SIGKILL');
      }
      await waitState(agent, 'web6', 'protected');
      const sent = sentBytes() - before;
      // What was written meanwhile goes again, and what was under way when it was looked at.
      const most = changedBytes + (writes - writesBefore + 8) * granularity;
      assert.ok(
        sent > 0 && sent <= most,
        `${sent} bytes were sent, of ${changedBytes} changed before, ${most} at most`,
      );
    }
    unsubscribe();
    limitResync(24 << 20);
    await endWell(guest, [image.file, mirror.file]);
  });

  it('is an outage, too, when the server is killed, and ends when it is started again', async () => {
    const { agent } = scene;
    const { guest, primary, mirror } = await protectedGuest('web2');

    await mirror.kill();
    await waitState(agent, 'web2', 'exposed');
    await goesOn(guest, 100);
    await mirror.restart();
    await waitState(agent, 'web2', 'protected');
    await goesOn(guest, 100);
    assert.ok((await events(agent, 'web2', 'mirror-lost')).length >= 1);
    await endWell(guest, [primary, mirror.file]);
  });

  it('may have cost the mirror writes that it had acknowledged but not flushed: the delta brings them back', async () => {
    const { agent } = scene;
    const { guest, primary, mirror } = await protectedGuest('web3');
    const written = new Set<number>();
    const unsubscribe = guest.witness.onAck(({ block }) => written.add(block));
    await goesOn(guest, 200);
    unsubscribe();

    await mirror.kill();
    await waitState(agent, 'web3', 'exposed');
    // What a server's volatile cache held is gone with it.
    for (const block of written) await writeBlock(mirror.file, block, Buffer.alloc(recordSize));
    await mirror.restart();
    await waitState(agent, 'web3', 'protected');
    await goesOn(guest, 50);
    await endWell(guest, [primary, mirror.file]);
  });

  it('is repeated, and each time nothing is lost', async () => {
    const { agent } = scene;
    const { guest, primary, mirror } = await protectedGuest('web4');
    for (let round = 1; round <= 3; round++) {
      mirror.failWrites();
      await waitState(agent, 'web4', 'exposed');
      await goesOn(guest, 20);
      mirror.heal();
      await waitState(agent, 'web4', 'protected');
      await goesOn(guest, 20);
    }
    await endWell(guest, [primary, mirror.file]);
  });

  it('makes a guest with policy strict wait, parked, until the mirror is current again', async () => {
    const { agent } = scene;
    const { guest, primary, mirror } = await protectedGuest('bank1', ['--policy', 'strict']);

    mirror.failAll();
    const waiting = await waitState(agent, 'bank1', 'waiting');
    assert.match(waiting.reason ?? '', /mirror|strict/);
    const acknowledged = guest.witness.acknowledged();
    assert.deepEqual(await roots(guest), ['cdp-vda-park']);
    assert.match(await guest.state(), /^paused/);
    assert.equal(guest.witness.acknowledged(), acknowledged);

    mirror.heal();
    await waitState(agent, 'bank1', 'protected');
    await goesOn(guest, 100);
    await endWell(guest, [primary, mirror.file]);
  });

  it('that the domain runs on alone ends when its server is back: QEMU connects again', async () => {
    const { agent } = scene;
    const { guest, mirror } = await protectedGuest('web8');
    await agent.mustCdp('failover', 'web8');
    await waitState(agent, 'web8', 'failed-over');
    await mirror.kill();
    await waitState(agent, 'web8', 'broken');
    await mirror.restart();
    await goesOn(guest);
    await waitState(agent, 'web8', 'failed-over');
    assert.equal(guest.witness.boots, 1);
    await endWell(guest, [mirror.file]);
  });

  it('followed by one of the primary leaves the guest waiting on its only current copy, which goes on when that heals', async () => {
    const { agent, lab } = scene;
    const primary = await lab.nbd({ name: 'web5' });
    const mirror = await lab.nbd({ name: 'web5-mirror' });
    const guest = await scene.guest({
      name: 'web5',
      disks: [{ dev: 'vda', bus: 'virtio', image: { format: 'raw', nbd: primary.address } }],
      cmdline: 'witness.rate=100',
    });
    await agent.mustCdp('protect', 'web5', '--disk', 'vda', '--mirror', mirror.uri);
    await goesOn(guest);

    mirror.failAll();
    await waitState(agent, 'web5', 'exposed');
    await goesOn(guest);
    primary.failAll();
    await guest.waitState('paused', patienceMs);
    const broken = await waitState(agent, 'web5', 'broken');
    assert.deepEqual([broken.primary.current, broken.mirror.current], [true, false]);
    assert.equal((await agent.cdp('status', 'web5', '--check')).code, 11);
    // The stale mirror comes back first: it must not be run on.
    mirror.heal();
    assert.equal((await status(agent, 'web5')).disks[0]?.mirror.current, false);
    primary.heal();
    await waitState(agent, 'web5', 'protected');
    await goesOn(guest, 50);
    assert.equal((await liveStatus(guest))?.state, 'protected');
    await endWell(guest, [primary.file, mirror.file]);
  });
});
