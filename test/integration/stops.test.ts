import assert from 'node:assert/strict';
import { copyFileSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { checkBlocks, outOfOrder } from '../lab/copies.ts';
import type { Guest } from '../lab/guest.ts';
import { run } from '../lab/run.ts';
import type { NbdServer } from '../lab/storage.ts';
import { waitFor } from '../lab/wait.ts';
import { endWell, goesOn, Mark } from './copies-hold.ts';
import { events, patienceMs, setScene, status, waitDisk, waitForLibvirt, waitState } from './scene.ts';

const diskBytes = 16 << 20;
/** The guest writes to the first half alone. */
const markBlock = 3000;

describe('after a stop', function () {
  this.timeout(150_000);
  const scene = setScene();
  let guest: Guest;
  let primary: string;
  let mirror: NbdServer;

  before(async () => {
    const { lab, agent } = scene;
    await agent.installHook();
    lab.libvirtd.reload();
    mirror = await scene.lab.nbd({ name: 'web1-mirror', sizeBytes: diskBytes });
    const image = await scene.lab.image('web1.raw', 'raw', diskBytes);
    primary = image.file;
    guest = await scene.residentGuest({
      name: 'web1',
      cmdline: 'witness.rate=100 witness.blocks=2000',
      disks: [{ dev: 'vda', bus: 'virtio', image }],
    });
    await scene.agent.mustCdp('protect', 'web1', '--disk', 'vda', '--mirror', mirror.uri);
    await goesOn(guest, 20);
  });

  /** How often a sync ended so far. */
  async function syncs(): Promise<number> {
    return (await events(scene.agent, 'web1', 'resync-finished')).length;
  }

  async function startAgain(): Promise<void> {
    await guest.start();
    await waitState(scene.agent, 'web1', 'protected');
    await goesOn(guest, 20);
  }

  /** What somebody does to the primary while the domain does not run leads to a full sync, and is then on both copies. */
  async function changedMeanwhile(change: () => void | Promise<void>): Promise<void> {
    const before = await syncs();
    await endWell(guest, [primary, mirror.file]);
    await waitState(scene.agent, 'web1', 'stopped');
    await change();
    await startAgain();
    assert.equal(await syncs(), before + 1, 'nothing was copied');
    await endWell(guest, [primary, mirror.file]);
    await startAgain();
  }

  it('by the guest the domain is protected again without copying', async () => {
    const before = await syncs();
    await endWell(guest, [primary, mirror.file]);
    await waitState(scene.agent, 'web1', 'stopped');
    await startAgain();
    assert.equal(await syncs(), before, 'something was copied');
    assert.deepEqual((await events(scene.agent, 'web1', 'armed')).at(-1)?.detail, { copied: 0 });
    await endWell(guest, [primary, mirror.file]);
    await startAgain();
  });

  it('a primary that somebody wrote to is copied', async () => {
    const mark = new Mark(primary, markBlock);
    await changedMeanwhile(() => mark.set());
    assert.ok(await new Mark(mirror.file, markBlock).isThere());
  });

  it('a primary that was replaced by a copy of itself is copied', async () => {
    await changedMeanwhile(() => {
      copyFileSync(primary, `${primary}.new`);
      renameSync(`${primary}.new`, primary);
    });
  });

  it('a primary that has grown is not protected by a mirror that is too small, and says so', async () => {
    await endWell(guest, [primary, mirror.file]);
    await waitState(scene.agent, 'web1', 'stopped');
    await run('truncate', ['--size', '+1M', primary]);
    await guest.start();
    const waiting = await waitDisk(scene.agent, 'web1', 'waiting, with the reason', ({ reason }) => reason !== null);
    assert.deepEqual([waiting.state, waiting.mirror.current], ['waiting', false]);
    assert.match(waiting.reason ?? '', /the mirror .* is too small/);
    await goesOn(guest, 20);
    await guest.shutdown();
    await waitState(scene.agent, 'web1', 'stopped');
    await run('truncate', ['--size', String(diskBytes), primary]);
    await startAgain();
  });

  it('a mirror that somebody wrote to is copied', async () => {
    const { agent, lab } = scene;
    const image = await lab.image('web2.raw', 'raw', diskBytes);
    const file = lab.path('web2-mirror.raw');
    const other = await scene.residentGuest({
      name: 'web2',
      cmdline: 'witness.rate=100 witness.blocks=2000',
      disks: [{ dev: 'vda', bus: 'virtio', image }],
    });
    await agent.mustCdp('protect', 'web2', '--disk', 'vda', '--mirror', file, '--create');
    await goesOn(other, 20);
    await endWell(other, [image.file, file]);
    await waitState(agent, 'web2', 'stopped');
    const mark = new Mark(file, markBlock);
    await mark.set();
    await other.start();
    await waitState(agent, 'web2', 'protected');
    assert.equal(await mark.isThere(), false, 'it was called identical');
    assert.equal((await events(agent, 'web2', 'copy-changed')).length, 1);
    await goesOn(other, 20);
    await endWell(other, [image.file, file]);
  });

  it('that no agent saw the next one calls the domain stopped, and copies everything at its start', async () => {
    const { agent } = scene;
    await agent.kill('SIGKILL');
    await guest.destroy();
    await agent.start();
    await waitForLibvirt(agent);
    await waitState(agent, 'web1', 'stopped');
    const before = await syncs();
    await startAgain();
    assert.equal(await syncs(), before + 1);
    await endWell(guest, [primary, mirror.file]);
    await startAgain();
  });

  it('by kill -9 the mirror stays whole as of the crash while it is copied, also through another crash', async () => {
    const { agent } = scene;
    const config = readFileSync(agent.configPath, 'utf8');
    writeFileSync(agent.configPath, `${config}\n[resync]\nmax_bytes_per_s = 1048576\n`);
    await waitFor(
      'the agent to read its configuration again',
      () => readFileSync(agent.logPath, 'utf8').includes('configuration reloaded'),
      patienceMs,
    );
    await goesOn(guest, 50);
    process.kill(guest.qemuPid, 'SIGKILL');
    await waitState(agent, 'web1', 'stopped');
    const promised = guest.witness.promised('vda');
    const atCrash = scene.lab.path('web1-at-crash.raw');
    copyFileSync(primary, atCrash);

    await guest.start();
    const copied = await waitDisk(agent, 'web1', 'copied for a while', ({ job }) => (job?.done ?? 0) > diskBytes / 8);
    assert.deepEqual([copied.state, copied.job?.kind], ['syncing', 'full-sync']);
    assert.ok(copied.mirror.consistentAsOf !== null && copied.mirror.mixture === undefined);
    await goesOn(guest, 50);
    assert.equal((await status(agent, 'web1')).state, 'syncing');
    process.kill(guest.qemuPid, 'SIGKILL');
    const { mirror: stopped } = await waitState(agent, 'web1', 'stopped');
    assert.deepEqual([stopped.current, stopped.consistentAsOf], [false, copied.mirror.consistentAsOf]);
    assert.deepEqual((await checkBlocks(mirror.file, 'vda', promised)).missing, []);
    assert.deepEqual(await outOfOrder(atCrash, mirror.file, promised.boots), []);

    writeFileSync(agent.configPath, config);
    await guest.start();
    await waitState(agent, 'web1', 'protected');
    await goesOn(guest, 20);
    await endWell(guest, [primary, mirror.file]);
  });
});
