import assert from 'node:assert/strict';
import { DECLARATION_URI } from '../../src/domain/declaration.ts';
import { z } from 'zod';
import { domainStatusesSchema, errorAnswerSchema, protectionEventSchema } from '../../src/control/schema.ts';
import { parseDomain } from '../../src/domain/domain.ts';
import type { Guest } from '../lab/guest.ts';
import { must } from '../lab/run.ts';
import { waitFor } from '../lab/wait.ts';
import { assertIdentical, assertNothingLost, endWell, goesOn, Mark } from './copies-hold.ts';
import { events, patienceMs, roots, setScene, sourceOf, status, waitDisk, waitState } from './scene.ts';

/** The guests write to the first three quarters of their 64 MiB; marks go behind. */
const guestBlocks = 12_288;
const markBlock = 14_000;
const cmdline = `witness.blocks=${guestBlocks} witness.rate=200`;

const exitCodes = { done: 0, failed: 1, usage: 2, unreachable: 3, refused: 4, degraded: 10 };

describe('the commands', function () {
  this.timeout(150_000);
  const scene = setScene();

  interface Protected {
    guest: Guest;
    primary: string;
    mirror: string;
  }

  /** A guest on a raw file with a mirror in another. */
  async function protectedGuest(name: string): Promise<Protected> {
    const { file: primary, ...image } = await scene.lab.image(`${name}.raw`);
    const mirror = scene.lab.path(`${name}-mirror.raw`);
    const guest = await scene.guest({
      name,
      cmdline,
      disks: [{ dev: 'vda', bus: 'virtio', image: { ...image, file: primary } }],
    });
    await scene.agent.mustCdp('protect', name, '--disk', 'vda', '--mirror', mirror, '--create');
    await goesOn(guest);
    return { guest, primary, mirror };
  }

  /** The command line with --json, which must fail with an exit code; the error's code. */
  async function failure(
    exitCode: number,
    ...args: string[]
  ): Promise<{ code: string; message: string; hint: string | null }> {
    const { code, stdout, stderr } = await scene.agent.cdp(...args, '--json');
    assert.equal(code, exitCode, `${args.join(' ')}\n${stderr}${stdout}`);
    return errorAnswerSchema.parse(JSON.parse(stdout)).error;
  }

  it('hold makes room for virsh blockcommit, and release brings the mirror up to date by a delta', async () => {
    const { agent, lab } = scene;
    const { guest, primary, mirror } = await protectedGuest('web1');
    const overlay = lab.path('web1.overlay');
    await guest.takeSnapshot(overlay);
    await goesOn(guest, 50);

    await agent.mustCdp('hold', 'web1');
    const held = await waitState(agent, 'web1', 'held');
    assert.deepEqual([held.runningOn, held.mirror.current], ['primary', false]);
    await lab.virsh('blockcommit', 'web1', 'vda', '--active', '--pivot', '--wait');
    assert.equal(await sourceOf(guest, 'live'), primary);
    await goesOn(guest, 50);

    await agent.mustCdp('release', 'web1');
    await waitState(agent, 'web1', 'protected');
    await goesOn(guest, 50);
    await endWell(guest, [primary, mirror]);
  });

  it('hold and release copy only what was written meanwhile', async () => {
    const { agent } = scene;
    const { guest, primary, mirror } = await protectedGuest('web2');
    const mark = new Mark(mirror, markBlock);
    await agent.mustCdp('hold', 'web2');
    await waitState(agent, 'web2', 'held');
    await goesOn(guest, 100);
    await mark.slipIn();
    await agent.mustCdp('release', 'web2');
    assert.equal(await mark.isThere(), true, 'the whole mirror was written');
    await mark.clear();
    await goesOn(guest, 50);
    assert.deepEqual(
      (await events(agent, 'web2')).map(({ event }) => event).filter((event) => /^(held|released)$/.test(event)),
      ['held', 'released'],
    );
    await endWell(guest, [primary, mirror]);
  });

  it('failover moves onto the mirror, and rebuild --to original back, by a delta', async () => {
    const { agent } = scene;
    const { guest, primary, mirror } = await protectedGuest('web3');
    await agent.mustCdp('failover', 'web3');
    assert.equal(await sourceOf(guest, 'next start'), mirror);
    assert.equal((await failure(exitCodes.failed, 'failover', 'web3')).code, 'failed-over');
    assert.equal((await failure(exitCodes.failed, 'hold', 'web3')).code, 'failed-over');
    await goesOn(guest, 100);

    const mark = new Mark(primary, markBlock);
    // The failed-over domain's old primary is closed after the move, unhurried.
    await waitDisk(agent, 'web3', 'off its primary', ({ state }) => state === 'failed-over');
    await mark.slipIn();
    await agent.mustCdp('rebuild', 'web3', '--to', 'original');
    const back = await waitState(agent, 'web3', 'protected');
    assert.equal(back.primary.source, primary);
    assert.equal(await mark.isThere(), true, 'the whole primary was written');
    await mark.clear();
    assert.equal(await sourceOf(guest, 'next start'), primary);
    assert.equal((await events(agent, 'web3', 'rebuild-finished')).length, 1);
    await goesOn(guest, 50);
    await endWell(guest, [primary, mirror]);
  });

  it('release and rebuild --to original copy everything if somebody wrote to the copy meanwhile', async () => {
    const { agent } = scene;
    const { guest, primary, mirror } = await protectedGuest('web11');
    await agent.mustCdp('hold', 'web11');
    await waitState(agent, 'web11', 'held');
    await new Mark(mirror, markBlock).set();
    await agent.mustCdp('release', 'web11');
    await waitState(agent, 'web11', 'protected');

    await agent.mustCdp('failover', 'web11');
    await waitState(agent, 'web11', 'failed-over');
    await new Mark(primary, markBlock).set();
    await agent.mustCdp('rebuild', 'web11', '--to', 'original');
    await waitState(agent, 'web11', 'protected');
    const changed = await events(agent, 'web11', 'copy-changed');
    assert.deepEqual(
      changed.map(({ detail }) => detail['copy']),
      ['mirror', 'primary'],
    );
    await goesOn(guest, 20);
    await endWell(guest, [primary, mirror]);
  });

  it('resync --full copies everything', async () => {
    const { agent } = scene;
    const { guest, primary, mirror } = await protectedGuest('web4');
    const mark = new Mark(mirror, markBlock);
    await mark.set();
    await agent.mustCdp('resync', 'web4', '--full');
    assert.equal(await mark.isThere(), false);
    await goesOn(guest, 50);
    await endWell(guest, [primary, mirror]);
  });

  it('unprotect leaves the guest running on its disk alone', async () => {
    const { agent } = scene;
    const { guest, primary, mirror } = await protectedGuest('web5');
    await agent.mustCdp('unprotect', 'web5');
    await goesOn(guest, 50);
    const [root] = await roots(guest);
    assert.match(root ?? '', /^libvirt-/);
    const { declaration, status: live } = parseDomain(await guest.xml());
    assert.deepEqual([declaration, live], [null, null]);
    assert.equal(parseDomain(await guest.xml('--inactive')).declaration, null);
    assert.equal((await failure(exitCodes.failed, 'status', 'web5')).code, 'no-such-protected-domain');

    // The mirror holds data now.
    assert.equal(
      (await failure(exitCodes.refused, 'protect', 'web5', '--disk', 'vda', '--mirror', mirror)).code,
      'mirror-holds-data',
    );
    await agent.mustCdp('protect', 'web5', '--disk', 'vda', '--mirror', mirror, '--overwrite-mirror');
    await goesOn(guest, 50);
    await endWell(guest, [primary, mirror]);
  });

  it('unprotect is refused while failed over, unless the mirror is to be kept', async () => {
    const { agent } = scene;
    const { guest, mirror } = await protectedGuest('web6');
    await agent.mustCdp('failover', 'web6');
    assert.equal((await failure(exitCodes.refused, 'unprotect', 'web6')).code, 'failed-over');
    await agent.mustCdp('unprotect', 'web6', '--keep', 'mirror');
    await goesOn(guest, 50);
    assert.equal(await sourceOf(guest, 'next start'), mirror);
    await guest.shutdown();
    await assertNothingLost(guest, [mirror]);
    await guest.start();
    await goesOn(guest, 30);
    await endWell(guest, [mirror]);
  });

  it('protect gives a disk without the stop policy one for its next start, and unprotect takes it back', async () => {
    const { agent, lab } = scene;
    const image = await lab.image('web7.raw');
    const mirror = lab.path('web7-mirror.raw');
    const guest = await scene.guest({
      name: 'web7',
      cmdline,
      disks: [{ dev: 'vda', bus: 'virtio', image, stopPolicy: false }],
    });
    const policies = async (...options: string[]): Promise<unknown> => {
      const [disk] = parseDomain(await guest.xml(...options)).disks;
      return [disk?.errorPolicy, disk?.readErrorPolicy];
    };
    const before = await policies('--inactive');
    const { code, stdout, stderr } = await agent.cdp(
      'protect',
      'web7',
      '--disk',
      'vda',
      '--mirror',
      mirror,
      '--create',
    );
    assert.equal(code, exitCodes.done, stderr);
    assert.match(`${stdout}${stderr}`, /Type: virsh shutdown web7, then virsh start web7/);
    const relaxed = await waitState(agent, 'web7', 'protected');
    assert.match(relaxed.reason ?? '', /error_policy/);
    assert.deepEqual(await policies('--inactive'), ['stop', 'stop']);
    await goesOn(guest, 30);

    await guest.shutdown();
    await guest.start();
    await waitState(agent, 'web7', 'protected');
    assert.equal((await status(agent, 'web7')).guarantee, 'strict-ack');
    await goesOn(guest, 30);
    await agent.mustCdp('unprotect', 'web7');
    assert.deepEqual(await policies('--inactive'), before);
    await goesOn(guest, 30);
    await guest.shutdown();
    await assertNothingLost(guest, [image.file]);
  });

  it('protect refuses what can not work or would do harm, and says why', async () => {
    const { agent, lab } = scene;
    const image = await lab.image('web8.raw');
    const other = await lab.image('web8-other.raw');
    const small = await lab.image('web8-small.raw', 'raw', 32 << 20);
    const full = await lab.image('web8-full.raw');
    const odd = await lab.image('web8-odd.qcow2', 'qcow2', 80 << 20);
    await must('dd', 'if=/dev/urandom', `of=${full.file}`, 'bs=4096', 'count=1', 'conv=notrunc');
    await scene.guest({ name: 'web8', start: false, disks: [{ dev: 'vda', bus: 'virtio', image }] });
    await scene.guest({ name: 'web9', start: false, disks: [{ dev: 'vda', bus: 'virtio', image: other }] });

    const refusals: [exitCode: number, code: string, disk: string, mirror: string, ...options: string[]][] = [
      [exitCodes.failed, 'mirror-too-small', 'vda', small.file],
      [exitCodes.failed, 'mirror-size-differs', 'vda', odd.file],
      [exitCodes.failed, 'image-in-use', 'vda', other.file],
      [exitCodes.failed, 'image-is-primary', 'vda', image.file],
      [exitCodes.refused, 'mirror-holds-data', 'vda', full.file],
      [exitCodes.failed, 'mirror-missing', 'vda', lab.path('web8-none.raw')],
      [exitCodes.failed, 'image-exists', 'vda', full.file, '--create'],
      [exitCodes.failed, 'disk-not-found', 'vdx', full.file],
      [exitCodes.usage, 'image-uri-invalid', 'vda', 'gopher://example.org/1'],
      [exitCodes.usage, 'image-uri-invalid', 'vda', 'relative.raw'],
    ];
    for (const [exitCode, code, disk, mirror, ...options] of refusals) {
      const told = await failure(exitCode, 'protect', 'web8', '--disk', disk, '--mirror', mirror, ...options);
      assert.equal(told.code, code, told.message);
    }
    assert.equal(
      (await failure(exitCodes.failed, 'protect', 'web0', '--disk', 'vda', '--mirror', full.file)).code,
      'no-such-domain',
    );
    assert.equal((await failure(exitCodes.usage, 'protect', 'web8', '--mirror', full.file)).code, 'usage');
    assert.deepEqual(await events(agent, 'web8'), []);

    await agent.mustCdp('protect', 'web8', '--disk', 'vda', '--mirror', full.file, '--overwrite-mirror');
    assert.equal(
      (await failure(exitCodes.failed, 'protect', 'web8', '--disk', 'vda', '--mirror', full.file)).code,
      'already-protected',
    );
    assert.equal(
      (await failure(exitCodes.failed, 'protect', 'web9', '--disk', 'vda', '--mirror', full.file)).code,
      'image-in-use',
    );
    await lab.virsh('metadata', 'web8', '--config', '--uri', DECLARATION_URI, '--remove');
    await waitFor(
      'the declaration to be back',
      async () => (await lab.virsh('dumpxml', 'web8', '--inactive')).includes(DECLARATION_URI),
      patienceMs,
    );
    assert.equal((await failure(exitCodes.refused, 'failover', 'web8')).code, 'mirror-stale');
  });

  it('list, status and events have the documented form, and exit codes tell how things are', async () => {
    const { agent } = scene;
    const { guest, primary, mirror } = await protectedGuest('db1');
    const list = domainStatusesSchema.parse(JSON.parse(await agent.mustCdp('list', '--json')));
    const all = domainStatusesSchema.parse(JSON.parse(await agent.mustCdp('list', '--all', '--json')));
    assert.ok(list.some(({ domain, state }) => domain === 'db1' && state === 'protected'));
    assert.ok(all.length >= list.length);
    for (const name of [
      'db1',
      list.find(({ domain }) => domain === 'db1')!.uuid,
      await scene.lab.virsh('domid', 'db1'),
    ]) {
      const [one, ...others] = domainStatusesSchema.parse(JSON.parse(await agent.mustCdp('status', name, '--json')));
      assert.deepEqual([one?.domain, one?.disks[0]?.runningOn, others], ['db1', 'both', []]);
    }
    assert.match(await agent.mustCdp('list'), /^db1\s+running\s+protected\s+both\s/m);
    assert.match(await agent.mustCdp('status', 'db1'), /db1 {2}protected/);
    assert.equal((await agent.cdp('status', 'db1', '--check')).code, exitCodes.done);

    await agent.mustCdp('hold', 'db1');
    await waitState(agent, 'db1', 'held');
    assert.equal((await agent.cdp('status', 'db1', '--check')).code, exitCodes.degraded);
    await agent.mustCdp('release', 'db1');

    const lines = (await agent.mustCdp('events', '--domain', 'db1', '--json')).trimEnd().split('\n');
    const told = z.array(protectionEventSchema).parse(lines.map((line) => JSON.parse(line) as unknown));
    assert.deepEqual([...new Set(told.map(({ domain }) => domain))], ['db1']);
    assert.ok(told.every(({ seq }, index) => index === 0 || seq > told[index - 1]!.seq));
    const last = told.at(-1)!;
    const later = await agent.mustCdp('events', '--since', String(last.seq - 1), '--json');
    assert.deepEqual(protectionEventSchema.parse(JSON.parse(later.split('\n')[0]!)), last);

    assert.equal((await agent.cdp('status', '--no-such-option')).code, exitCodes.usage);
    assert.equal((await agent.cdp('--socket', '/nowhere/sock', 'list')).code, exitCodes.unreachable);
    await guest.suspend();
    await guest.waitState('paused', patienceMs);
    await assertIdentical(primary, mirror);
    await guest.resume();
    await goesOn(guest);
    await endWell(guest, [primary, mirror]);
  });
});
