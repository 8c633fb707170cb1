import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { endWell, goesOn, Mark } from './copies-hold.ts';
import type { Guest } from '../lab/guest.ts';
import type { NbdServer } from '../lab/storage.ts';
import { waitFor } from '../lab/wait.ts';
import { events, patienceMs, setScene, waitDisk, waitState } from './scene.ts';

const sizeBytes = 32 << 20;
/** The guest writes to the first half; the mark goes behind. */
const guestBlocks = 4_096;
const markBlock = 6_000;

const slowBytesPerS = 8 << 20;

describe('an outage of the mirror, with the primary in a qcow2 image', function () {
  this.timeout(150_000);
  const scene = setScene({ config: { resync: { max_bytes_per_s: slowBytesPerS } } });
  let guest: Guest;
  let primary: { file: string; format: 'raw' | 'qcow2' };
  let mirror: NbdServer;

  before(async () => {
    primary = await scene.lab.image('web1.qcow2', 'qcow2', sizeBytes);
    mirror = await scene.lab.nbd({ name: 'web1-mirror', sizeBytes });
    guest = await scene.residentGuest({
      name: 'web1',
      cmdline: `witness.blocks=${guestBlocks} witness.rate=50`,
      disks: [{ dev: 'vda', bus: 'virtio', image: primary }],
    });
    await scene.agent.mustCdp('protect', 'web1', '--disk', 'vda', '--mirror', mirror.uri);
    await goesOn(guest);
  });

  async function loseMirror(): Promise<void> {
    mirror.failAll();
    await waitState(scene.agent, 'web1', 'exposed');
    await goesOn(guest);
  }

  it('that lasts across a shutdown and a start is mended by a delta', async () => {
    await loseMirror();
    await guest.shutdown();
    const mark = new Mark(mirror.file, markBlock);
    await mark.set();
    // The image keeps the bitmap: a snapshot inside it can be taken, and nothing goes back to one.
    await scene.lab.virsh('snapshot-create-as', 'web1', 's1');
    const refused = await scene.lab.libvirtd.virsh('snapshot-revert', 'web1', 's1');
    assert.match(refused.stderr, /active dirty bitmaps/);
    await guest.start();
    await goesOn(guest);
    mirror.heal();
    await waitState(scene.agent, 'web1', 'protected');
    assert.equal(await mark.isThere(), true, 'the whole mirror was written');
    await mark.clear();
  });

  it('is mended by copying everything after a kill, which is told, at a speed that can be changed meanwhile', async () => {
    const { agent, lab } = scene;
    await loseMirror();
    process.kill(guest.qemuPid, 'SIGKILL');
    await guest.waitState('shut off', patienceMs);
    const before = await reasons();
    assert.equal(before.at(-1), undefined, 'a delta needs no reason');
    await guest.start();
    mirror.heal();
    const syncing = await waitDisk(agent, 'web1', 'copied in full', ({ job }) => job?.kind === 'full-sync');
    assert.match(syncing.reason ?? '', /everything is copied/);
    // One that began before the mirror was healed has begun again.
    const since = (await reasons()).slice(before.length);
    assert.notEqual(since.length, 0);
    for (const reason of since) assert.match(String(reason), /everything is copied/);
    assert.equal(await speed(), slowBytesPerS);

    const config = readFileSync(agent.configPath, 'utf8');
    writeFileSync(agent.configPath, config.replace(/max_bytes_per_s = \d+/, 'max_bytes_per_s = 0'));
    await waitFor('the sync to be faster', async () => (await speed()) !== slowBytesPerS, patienceMs);
    await waitState(agent, 'web1', 'protected');
    await goesOn(guest);
    await endWell(guest, [{ filename: lab.path('web1.qcow2'), format: 'qcow2' }, mirror.file]);
  });

  /** Of each sync so far. */
  async function reasons(): Promise<unknown[]> {
    return (await events(scene.agent, 'web1', 'resync-started')).map(({ detail }) => detail['reason']);
  }

  /** Of the job that runs; null without one. */
  async function speed(): Promise<number | null> {
    const jobs = (await guest.qmp('query-block-jobs')) as { speed: number }[];
    return jobs[0]?.speed ?? null;
  }
});
