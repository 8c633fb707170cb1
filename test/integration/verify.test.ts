import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import type { ActionResult } from '../../src/control/api.ts';
import { LibvirtClient } from '../../src/libvirt/client.ts';
import type { DiskVerdict } from '../../src/protection/model.ts';
import { assertNothingLost, endWell, goesOn, Mark } from './copies-hold.ts';
import type { Guest } from '../lab/guest.ts';
import { recordSize } from '../lab/record.ts';
import { type Finished, must } from '../lab/run.ts';
import type { NbdServer } from '../lab/storage.ts';
import { waitFor } from '../lab/wait.ts';
import { events, nodeNames, patienceMs, setScene, status, waitDisk, waitState } from './scene.ts';

/** The guest writes to the first 32 of its 48 MiB; differences are made behind. */
const sizeBytes = 48 << 20;
const guestBlocks = 8_192;
const markBlock = 10_003;
const block = 65_536;

/** With it a verify of the whole disk takes a minute, so that something can happen meanwhile. */
const slowBytesPerS = 1 << 20;

describe('a verify', function () {
  this.timeout(180_000);
  const scene = setScene();
  let guest: Guest;
  let primary: NbdServer;
  let mirror: NbdServer;

  before(async () => {
    const { lab } = scene;
    // The default scratch folder, in the laboratory's namespace alone: small, so that it can be filled.
    await inLab('mount', '-t', 'tmpfs', '-o', 'size=96m', 'tmpfs', '/var/tmp');
    primary = await lab.nbd({ name: 'web1', sizeBytes });
    mirror = await lab.nbd({ name: 'web1-mirror', sizeBytes });
    guest = await scene.residentGuest({
      name: 'web1',
      cmdline: `witness.blocks=${guestBlocks} witness.rate=200`,
      disks: [{ dev: 'vda', bus: 'virtio', image: { format: 'raw', nbd: primary.address } }],
    });
    await scene.agent.mustCdp('protect', 'web1', '--disk', 'vda', '--mirror', mirror.uri);
    await goesOn(guest);
  });

  async function inLab(program: string, ...args: string[]): Promise<string> {
    return must(...scene.lab.libvirtd.namespace.command(program, ...args));
  }

  async function verifyAll(name: string, ...options: string[]): Promise<{ code: number; verdicts: DiskVerdict[] }> {
    const { code, stdout, stderr } = await scene.agent.cdp('verify', name, '--json', ...options);
    const { verdicts } = JSON.parse(stdout) as ActionResult;
    assert.ok(verdicts !== undefined, `${stdout}${stderr}`);
    return { code, verdicts };
  }

  async function verify(...options: string[]): Promise<{ code: number; verdict: DiskVerdict }> {
    const { code, verdicts } = await verifyAll('web1', ...options);
    assert.equal(verdicts.length, 1);
    return { code, verdict: verdicts[0]! };
  }

  /** How often the guest was paused while something was done. */
  async function pausesDuring(action: () => Promise<unknown>): Promise<number> {
    const client = await LibvirtClient.connect({ socketPath: scene.lab.libvirtd.socket });
    const pausesAtMs: number[] = [];
    try {
      await client.events.onQemuMonitorEvent(({ domain, seconds, micros }) => {
        if (domain.name === guest.name) pausesAtMs.push(seconds * 1000 + micros / 1000);
      }, 'STOP');
      await action();
      // When this one has been told, all before it have.
      const ownAtMs = Date.now();
      await guest.suspend();
      await guest.resume();
      await waitFor('its own pause to be told', () => (pausesAtMs.at(-1) ?? 0) >= ownAtMs, patienceMs);
      return pausesAtMs.length - 1;
    } finally {
      await client.close();
    }
  }

  /** Begins a verify that goes on for a minute, and returns when an instant is being compared. */
  async function beginSlowVerify(): Promise<{ finished: Promise<Finished> }> {
    const finished = scene.agent.cdp('verify', 'web1', '--max-bytes-per-s', String(slowBytesPerS));
    await waitFor('an instant to be compared', async () => (await parts()).length > 4, patienceMs);
    const { job } = await waitDisk(scene.agent, 'web1', 'verified', (disk) => disk.job !== null);
    assert.equal(job?.kind, 'verify');
    return { finished };
  }

  /** The arguments of the comparison that the agent has running now. */
  async function comparison(): Promise<string[]> {
    return waitFor('a comparison', () => childrenOf(scene.agent.pid).find((args) => args[1] === 'compare'), patienceMs);
  }

  /** All that a verify leaves in QEMU and in the scratch folder while it runs. */
  async function parts(): Promise<string[]> {
    const exports = (await guest.qmp('query-block-exports')) as { id: string }[];
    const nodes = (await guest.qmp('query-named-block-nodes', { flat: true })) as {
      'dirty-bitmaps'?: { name: string }[];
    }[];
    const bitmaps = nodes.flatMap((node) => node['dirty-bitmaps'] ?? []).map(({ name }) => name);
    const files = (await inLab('ls', '/var/tmp')).split('\n');
    return [...(await nodeNames(guest)), ...exports.map(({ id }) => id), ...bitmaps, ...files].filter((name) =>
      /verify|virt-cdp|overlay|scratch/.test(name),
    );
  }

  async function waitNothingLeft(): Promise<void> {
    let last: string[] = [];
    await waitFor(
      'nothing to be left of the verify',
      async () => (last = await parts()).length === 0,
      patienceMs,
      () => last.join(),
    );
  }

  it('finds no difference where there is none, while the guest writes', async () => {
    const pauses = await pausesDuring(async () => {
      const { code, verdict } = await verify();
      assert.deepEqual([code, verdict.differences, verdict.complete], [0, [], true]);
      assert.equal(verdict.comparedBytes, sizeBytes);
    });
    assert.equal(pauses, 0, 'the guest was paused');
    assert.deepEqual(await parts(), []);
    assert.equal((await status(scene.agent, 'web1')).state, 'protected');
  });

  it('finds what was changed behind the back of QEMU, and repairs the mirror, not the primary', async () => {
    const mark = new Mark(mirror.file, markBlock);
    await mark.set();
    const offset = Math.floor((markBlock * recordSize) / block) * block;
    const pauses = await pausesDuring(async () => {
      const { code, verdict } = await verify('--repair');
      assert.deepEqual([code, verdict.differences, verdict.repairing], [1, [{ offset, length: block }], true]);
      await waitState(scene.agent, 'web1', 'protected');
    });
    assert.equal(pauses, 2, 'the mirror is left, and armed again');
    assert.equal(await mark.isThere(), false, 'the mirror has the difference still');
    assert.equal(await new Mark(primary.file, markBlock).isThere(), false, 'the primary was overwritten');
    assert.equal((await verify()).code, 0);
  });

  it('finds it where the guest writes, too, and repairs it there', async () => {
    const offset = 100 * block;
    const records = block / recordSize;
    const marks = Array.from({ length: records }, (_, n) => new Mark(mirror.file, offset / recordSize + n));
    for (const mark of marks) await mark.set();
    const { code, verdict } = await verify('--repair');
    assert.deepEqual([code, verdict.differences, verdict.repairing], [1, [{ offset, length: block }], true]);
    await waitState(scene.agent, 'web1', 'protected');
    for (const mark of marks) assert.equal(await mark.isThere(), false, 'the mirror has the difference still');
    assert.equal((await verify()).code, 0);
  });

  it('accuses nothing but what was changed under the heaviest writes, and compares the disk alone that it is told to', async () => {
    const { lab, agent } = scene;
    const devs = ['vda', 'vdb'];
    const images = await Promise.all(devs.map((dev) => lab.image(`busy-${dev}.raw`, 'raw', 16 << 20)));
    const mirrors = devs.map((dev) => lab.path(`busy-${dev}-mirror.raw`));
    const busy = await scene.guest({
      name: 'busy',
      cmdline: 'witness.rate=0 witness.depth=4 witness.blocks=3072',
      disks: devs.map((dev, n) => ({ dev, bus: 'virtio', image: images[n]! })),
    });
    for (const [n, dev] of devs.entries())
      await agent.mustCdp('protect', 'busy', '--disk', dev, '--mirror', mirrors[n]!, '--create');
    for (const dev of devs) await goesOn(busy, 100, dev);
    await new Mark(mirrors[1]!, 4000).set();
    const one = await verifyAll('busy', '--disk', 'vda');
    assert.deepEqual([one.code, one.verdicts.map(({ dev }) => dev)], [0, ['vda']]);
    const both = await verifyAll('busy');
    assert.deepEqual(
      both.verdicts.map(({ dev, differingBytes, complete }) => ({ dev, differingBytes, complete })),
      devs.map((dev) => ({ dev, differingBytes: dev === 'vda' ? 0 : block, complete: true })),
    );
    assert.deepEqual(
      (await events(agent, 'busy', 'verified')).map(({ disk }) => disk),
      ['vda', 'vda', 'vdb'],
    );
  });

  it('is refused while somebody else has the NBD server of QEMU, which is left alone', async () => {
    const path = `${scene.lab.root}/stranger.sock`;
    await guest.qmp('nbd-server-start', { addr: { type: 'unix', data: { path } } });
    const { code, stdout } = await scene.agent.cdp('verify', 'web1', '--json');
    assert.equal(code, 1);
    assert.match(stdout, /nbd-server-in-use/);
    await waitNothingLeft();
    await guest.qmp('nbd-server-stop');
  });

  it('is refused under I/O threads, where it could end QEMU', async () => {
    await guest.qmp('object-add', { 'qom-type': 'iothread', id: 'stranger' });
    const { code, stdout } = await scene.agent.cdp('verify', 'web1', '--json');
    assert.equal(code, 1);
    assert.match(stdout, /iothreads-unsafe/);
    assert.deepEqual(await parts(), []);
    await guest.qmp('object-del', { id: 'stranger' });
  });

  it('is swept away by the next agent when the agent is killed', async () => {
    const { agent } = scene;
    const { finished } = await beginSlowVerify();
    const args = (await comparison()).join(' ');
    const limits = [...args.matchAll(/"qom-type":"throttle-group","id":"([^"]+)","limits":{"bps-read":(\d+)}/g)];
    const limited = [...args.matchAll(/"driver":"throttle","throttle-group":"([^"]+)"/g)].map(([, id]) => id);
    assert.deepEqual(new Set(limits.map(([, , bytesPerS]) => Number(bytesPerS))), new Set([slowBytesPerS]), args);
    assert.deepEqual([limited.length, limited], [2, limits.map(([, id]) => id)], 'each copy is read no faster');
    await agent.restart('SIGKILL');
    assert.equal((await finished).code, 3);
    await waitNothingLeft();
    await waitState(agent, 'web1', 'protected');
    const failures = await events(agent, 'web1', 'verify-failed');
    assert.match(String(failures.at(-1)?.detail['why']), /the agent ended/);
  });

  it('gives way when a copy fails', async () => {
    const { agent } = scene;
    const { finished } = await beginSlowVerify();
    mirror.failAll();
    await waitState(agent, 'web1', 'exposed');
    assert.equal((await finished).code, 1);
    await goesOn(guest);
    mirror.heal();
    await waitState(agent, 'web1', 'protected');
    assert.deepEqual(await parts(), []);
  });

  it('takes a full scratch folder for what it is, not for a failed copy', async () => {
    const { agent } = scene;
    const lost = await lostCopies();
    const { finished } = await beginSlowVerify();
    await inLab('sh', '-c', 'cat /dev/zero > /var/tmp/filler || true');
    const { code } = await finished;
    assert.equal(code, 1);
    await inLab('rm', '/var/tmp/filler');
    await waitState(agent, 'web1', 'protected');
    await goesOn(guest, 100);
    assert.deepEqual(await lostCopies(), lost);
    assert.deepEqual(await parts(), []);
    await assertNothingLost(guest, [primary.file, mirror.file]);
  });

  it('ends with the domain, and a domain whose primary fails meanwhile goes over to its mirror', async () => {
    const { agent } = scene;
    const { finished } = await beginSlowVerify();
    primary.failAll();
    await waitState(agent, 'web1', 'failed-over');
    assert.equal((await finished).code, 1);
    await goesOn(guest);
    assert.deepEqual(await parts(), []);
    await assertNothingLost(guest, [mirror.file]);
    primary.heal();
    await waitDisk(agent, 'web1', 'back', ({ runningOn }) => runningOn === 'mirror');
    await agent.mustCdp('rebuild', 'web1', '--to', 'original');
    const again = await beginSlowVerify();
    await endWell(guest, [primary.file, mirror.file]);
    assert.equal((await again.finished).code, 1);
    assert.equal(await inLab('ls', '/var/tmp'), '');
  });

  async function lostCopies(): Promise<number> {
    const all = await events(scene.agent, 'web1');
    return all.filter(({ event }) => ['primary-lost', 'mirror-lost', 'failed-over', 'broken'].includes(event)).length;
  }
});

/** The arguments of a process's children, as they are now. */
function childrenOf(pid: number): string[][] {
  const children = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').split(' ');
  return children.flatMap((child) => {
    try {
      return [readFileSync(`/proc/${child}/cmdline`, 'utf8').split('\0')];
    } catch {
      return [];
    }
  });
}
