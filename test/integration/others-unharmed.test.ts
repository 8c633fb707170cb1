import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import type { Guest } from '../lab/guest.ts';
import type { NbdServer } from '../lab/storage.ts';
import { waitFor } from '../lab/wait.ts';
import { assertNothingLost, endWell, goesOn } from './copies-hold.ts';
import { events, patienceMs, setScene, status, waitState } from './scene.ts';

describe('a hung domain', function () {
  this.timeout(150_000);
  const scene = setScene();

  interface Pair {
    guest: Guest;
    primary: NbdServer;
    mirror: NbdServer;
  }

  let hung: Pair;
  let stuck: Pair;
  let web: Pair;
  let late: Pair;

  async function protectedGuest(name: string, start = true): Promise<Pair> {
    const primary = await scene.lab.nbd({ name: `${name}-primary`, sizeBytes: 16 << 20 });
    const mirror = await scene.lab.nbd({ name: `${name}-mirror`, sizeBytes: 16 << 20 });
    const guest = await scene.residentGuest({
      name,
      start,
      cmdline: 'witness.rate=20',
      disks: [{ dev: 'vda', bus: 'virtio', image: { format: 'raw', nbd: primary.address } }],
    });
    await scene.agent.mustCdp('protect', name, '--disk', 'vda', '--mirror', mirror.uri);
    return { guest, primary, mirror };
  }

  before(async function () {
    this.timeout(patienceMs);
    const { lab, agent } = scene;
    await agent.installHook();
    lab.libvirtd.reload();
    [hung, stuck, web, late] = await Promise.all([
      protectedGuest('hung'),
      protectedGuest('stuck'),
      protectedGuest('web'),
      protectedGuest('late', false),
    ]);
    for (const { guest } of [hung, stuck, web]) await goesOn(guest, 20);
  });

  async function failsOver({ guest, primary, mirror }: Pair): Promise<void> {
    primary.failAll();
    await waitState(scene.agent, guest.name, 'failed-over');
    await goesOn(guest, 20);
    await assertNothingLost(guest, [mirror.file]);
    assert.equal(guest.witness.boots, 1);
  }

  /** The command line answers for all domains, and one that was off starts and gets its protection. */
  async function othersAreServed(hanging: Pair, off: Pair): Promise<void> {
    const { agent } = scene;
    const listed = JSON.parse(await agent.mustCdp('list', '--all', '--json')) as { domain: string }[];
    assert.deepEqual(listed.map(({ domain }) => domain).sort(), ['hung', 'late', 'stuck', 'web']);
    assert.equal((await agent.status(hanging.guest.name)).running, true);
    await off.guest.start();
    await waitState(agent, off.guest.name, 'protected');
    await goesOn(off.guest, 20);
  }

  it('whose QEMU is stopped while the agent wants something of it delays nobody, and is served when it goes on', async () => {
    const { agent } = scene;
    const { guest } = hung;
    const qemu = guest.qemuPid;
    process.kill(qemu, 'SIGSTOP');
    const order: string[] = [];
    const asked = agent.mustCdp('hold', 'hung').finally(() => order.push('the agent has given up the hung domain'));
    asked.catch(() => undefined);
    try {
      await waitFor(
        'the agent to know of the request',
        async () => (await events(agent, 'hung', 'requested')).length > 0,
        patienceMs,
      );
      await failsOver(web);
      order.push('web is failed over');
      await othersAreServed(hung, late);
      assertStopped(qemu);
      assert.equal((await events(agent, 'hung', 'held')).length, 0);
    } finally {
      process.kill(qemu, 'SIGCONT');
    }
    await asked;
    assert.equal(order[0], 'web is failed over', 'it had to wait');
    await waitState(agent, 'hung', 'held');
    await goesOn(guest, 20);
    await agent.mustCdp('release', 'hung');
    await waitState(agent, 'hung', 'protected');
    await goesOn(guest, 20);
    await endWell(guest, [hung.primary.file, hung.mirror.file]);
  });

  it('whose mirror hangs delays nobody, and is protected when that goes on', async () => {
    const { agent } = scene;
    const { guest, primary, mirror } = stuck;
    mirror.hang();
    try {
      await failsOver(late);
      await othersAreServed(stuck, hung);
      assertStopped(mirror.pid);
    } finally {
      mirror.unhang();
    }
    await goesOn(guest, 20);
    await waitState(agent, 'stuck', 'protected');
    await goesOn(guest, 20);
    await endWell(guest, [primary.file, mirror.file]);
    assert.equal((await status(agent, 'hung')).state, 'protected');
  });
});

/** The process that causes the hang was let go by nobody. */
function assertStopped(pid: number): void {
  const state = /^State:\s+(\S)/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1];
  assert.equal(state, 'T', 'the hang is over');
}
