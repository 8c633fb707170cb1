import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { DiskState, DiskStatus, EventName } from '../../src/protection/model.ts';
import type { Image } from '../lab/copies.ts';
import type { Guest } from '../lab/guest.ts';
import { recordSize } from '../lab/record.ts';
import { HeldStarts } from '../lab/held-starts.ts';
import type { NbdServer } from '../lab/storage.ts';
import { waitFor, within } from '../lab/wait.ts';
import { assertIdentical, assertNothingLost, goesOn, writeBlock } from './copies-hold.ts';
import { events, patienceMs, roots, setScene, status, waitDisk, waitState } from './scene.ts';

const sizeBytes = 16 << 20;

/** What happens to a domain while its agent is away, and what the agent makes of it when it comes back. */
describe('an agent that was away', function () {
  this.timeout(150_000);
  // A full sync takes a second: a status that calls the mirror current too early is seen.
  const scene = setScene({ config: { resync: { max_bytes_per_s: sizeBytes } } });
  let guest: Guest;
  let primary: NbdServer;
  let mirror: NbdServer;
  let heldStarts: HeldStarts;

  before(async function () {
    this.timeout(150_000);
    const { lab, agent } = scene;
    await agent.installHook();
    heldStarts = await HeldStarts.install(lab.libvirtd);

    primary = await lab.nbd({ name: 'web1-primary', sizeBytes });
    mirror = await lab.nbd({ name: 'web1-mirror', sizeBytes, listen: { port: 0 } });
    guest = await scene.residentGuest({
      name: 'web1',
      cmdline: 'witness.rate=50',
      disks: [{ dev: 'vda', bus: 'virtio', image: { format: 'raw', nbd: primary.address } }],
    });
    await agent.mustCdp('protect', 'web1', '--disk', 'vda', '--mirror', mirror.uri);
    await goesOn(guest, 10);
  });

  /** The agent ends, `deeds` are done, and it comes back; what its status said of the disk until `goal`, which is last. */
  async function whileAway(deeds: () => Promise<unknown>, goal: DiskState): Promise<DiskStatus[]> {
    await scene.agent.kill('SIGKILL');
    await deeds();
    return comesBack(goal);
  }

  /** No answer before the last is better than what nobody has looked at may be called. */
  async function comesBack(goal: DiskState): Promise<DiskStatus[]> {
    const { agent } = scene;
    const answers: DiskStatus[] = [];
    const asking = new AbortController();
    const reached = (async () => {
      while (!asking.signal.aborted && answers.at(-1)?.state !== goal) {
        const disk = await status(agent, 'web1').then(
          ({ disks }) => disks[0],
          () => undefined,
        );
        if (disk === undefined) await sleep(2);
        else answers.push(disk);
      }
    })();
    try {
      await agent.start();
      await within(`web1 to be ${goal}`, reached, patienceMs, () => JSON.stringify(answers.at(-1)));
    } finally {
      asking.abort();
    }
    const early = answers.slice(0, -1).filter(({ state }) => state === 'protected' || state === 'stopped');
    assert.deepEqual(early, [], 'nobody had looked');
    return answers;
  }

  /** After a run on the primary alone: the mirror was not called current before everything was copied. */
  async function comesBackToStaleMirror(deeds: () => Promise<unknown>): Promise<void> {
    const before = await lastEvent();
    const answers = await whileAway(deeds, 'protected');
    assert.deepEqual(await roots(guest), ['cdp-vda'], 'it was not protected yet');
    const told = await eventsAfter(before);
    assert.ok(told.includes('resync-finished'), `nothing was copied: ${told.join()}`);
    assert.equal(told.filter((event) => event === 'armed').length, 1, told.join());
    const lastStale = answers.findLastIndex((disk) => !disk.mirror.current);
    const firstCurrent = answers.findIndex((disk) => disk.mirror.current);
    assert.ok(lastStale >= 0 && firstCurrent > lastStale, 'the mirror was called current');
    await assertWell();
  }

  async function lastEvent(): Promise<number> {
    return (await events(scene.agent, 'web1')).at(-1)!.seq;
  }

  async function eventsAfter(seq: number): Promise<EventName[]> {
    return (await events(scene.agent, 'web1')).filter((one) => one.seq > seq).map(({ event }) => event);
  }

  /** The guest goes on, protected, and both copies hold all that it was told is safe. */
  async function assertWell(on: Image = primary.file): Promise<void> {
    await waitState(scene.agent, 'web1', 'protected');
    await goesOn(guest, 10);
    await guest.suspend();
    await assertNothingLost(guest, [on, mirror.file]);
    await assertIdentical(on, mirror.file);
    await guest.resume();
  }

  async function pausedByError(): Promise<void> {
    await guest.waitState('paused (I/O error)', patienceMs);
  }

  it('at a start copies everything: the guest has written to the primary alone', async () => {
    await guest.shutdown();
    await waitState(scene.agent, 'web1', 'stopped');
    await comesBackToStaleMirror(async () => {
      await guest.start();
      await goesOn(guest, 20);
    });
  });

  it('when the domain was destroyed, or its QEMU killed, and started again, copies everything', async () => {
    await comesBackToStaleMirror(async () => {
      await guest.destroy();
      await guest.start();
    });
    await comesBackToStaleMirror(async () => {
      process.kill(guest.qemuPid, 'SIGKILL');
      await guest.waitState('shut off', patienceMs);
      await guest.start();
      await goesOn(guest, 10);
    });
  });

  it('when one copy failed after the other goes on with the one that answers', async () => {
    const { agent } = scene;
    await whileAway(async () => {
      mirror.failAll();
      await pausedByError();
      primary.failAll();
      primary.heal();
    }, 'exposed');
    await goesOn(guest, 10);
    mirror.heal();
    await assertWell();

    await whileAway(async () => {
      primary.failAll();
      await pausedByError();
      mirror.failAll();
      mirror.heal();
    }, 'failed-over');
    await goesOn(guest, 10);
    primary.heal();
    await agent.mustCdp('rebuild', 'web1', '--to', 'original');
    await assertWell();
  });

  /** The blocks of some of the guest's latest writes. */
  async function writes(): Promise<Set<number>> {
    const written = new Set<number>();
    const unsubscribe = guest.witness.onAck(({ block }) => written.add(block));
    await goesOn(guest, 30);
    unsubscribe();
    return written;
  }

  /** A server crashes, loses what it had acknowledged and not flushed, and is there again. */
  async function forgets(
    server: NbdServer,
    blocks: Iterable<number>,
    meanwhile?: () => Promise<unknown>,
  ): Promise<void> {
    await server.kill();
    await meanwhile?.();
    for (const block of blocks) await writeBlock(server.file, block, Buffer.alloc(recordSize));
    await server.restart();
  }

  it('when the server of the mirror lost what it had not flushed, brings that back', async () => {
    const written = await writes();
    const before = await lastEvent();
    await whileAway(() => forgets(mirror, written, pausedByError), 'protected');
    await assertWell();
    assert.ok((await eventsAfter(before)).includes('armed'), 'nothing was brought back');
  });

  it('when such a server is back and somebody has resumed the guest, whose requests do not fail any more, brings that back, too', async () => {
    const written = await writes();
    const before = await lastEvent();
    await whileAway(async () => {
      await forgets(mirror, written, pausedByError);
      const acknowledged = goesOn(guest, 10).then(() => true);
      // QEMU's next request makes another connection; the first may still fail on the former one.
      await waitFor(
        'the guest to go on',
        async () => {
          if (await isPaused()) await guest.resume();
          return Promise.race([acknowledged, sleep(50)]);
        },
        patienceMs,
      );
    }, 'protected');
    await waitFor('the mirror to be armed anew', async () => (await eventsAfter(before)).includes('armed'), patienceMs);
    assert.ok((await eventsAfter(before)).includes('mirror-lost'), 'it was not told');
    await assertWell();
  });

  it('when such a server is back before anybody noticed, and then the primary fails, does not move the guest onto its mirror', async () => {
    const written = await writes();
    await whileAway(async () => {
      await guest.suspend();
      await forgets(mirror, written);
      primary.failAll();
      await guest.resume();
      await pausedByError();
    }, 'broken');
    const before = await lastEvent();
    primary.heal();
    await assertWell();
    assert.ok(!(await eventsAfter(before)).includes('failed-over'));
  });

  it('when such a server is back before anybody noticed, fails over on request only when its mirror is current again', async () => {
    const { agent } = scene;
    const written = await writes();
    await whileAway(async () => {
      await guest.suspend();
      await forgets(mirror, written);
    }, 'protected');
    await agent.mustCdp('failover', 'web1');
    await assertNothingLost(guest, [mirror.file]);
    await guest.resume();
    await agent.mustCdp('rebuild', 'web1', '--to', 'original');
    await assertWell();
  });

  it('when the server of the primary was away unnoticed, does not hold the guest on it', async () => {
    const { agent } = scene;
    const written = await writes();
    await whileAway(async () => {
      await guest.suspend();
      await forgets(primary, written);
    }, 'protected');
    await agent.cdp('hold', 'web1');
    await waitState(agent, 'web1', 'failed-over');
    await assertNothingLost(guest, [mirror.file]);
    await guest.resume();
    await agent.mustCdp('rebuild', 'web1', '--to', 'original');
    await assertWell();
  });

  it('while another domain is held at its start does not wait for that', async () => {
    const { lab } = scene;
    await scene.guest({ name: 'held', start: false, disks: [] });
    let starting: Promise<unknown> = Promise.resolve();
    try {
      await whileAway(async () => {
        starting = lab.libvirtd.virsh('start', 'held');
        await heldStarts.waitHeld(patienceMs);
        mirror.failAll();
        await waitFor('the guest to wait', isPaused, patienceMs);
      }, 'exposed');
      await goesOn(guest, 10);
    } finally {
      await heldStarts.letGo();
      await starting;
    }
    mirror.heal();
    await assertWell();
  });

  async function isPaused(): Promise<boolean> {
    const { running } = (await guest.qmp('query-status')) as { running: boolean };
    return !running;
  }

  it('when the domain was suspended leaves it suspended, and protected', async () => {
    const before = await lastEvent();
    await whileAway(() => guest.suspend(), 'protected');
    assert.match(await guest.state(), /^paused \(user\)/);
    assert.deepEqual(await eventsAfter(before), []);

    const { agent } = scene;
    await agent.mustCdp('hold', 'web1');
    await waitState(agent, 'web1', 'held');
    await agent.mustCdp('release', 'web1');
    await waitState(agent, 'web1', 'protected');
    const told = (await eventsAfter(before)).filter((event) => ['resync-finished', 'armed'].includes(event));
    assert.deepEqual(told, ['resync-finished', 'armed']);
    assert.match(await guest.state(), /^paused \(user\)/);
    await guest.resume();
    await assertWell();
  });

  it('when the domain was undefined and libvirtd restarted finds it protected; gone, its record is kept', async () => {
    const { agent, lab } = scene;
    const xml = join(lab.root, 'web1-again.xml');
    writeFileSync(xml, await guest.xml('--inactive', '--security-info'));
    const before = await lastEvent();
    await whileAway(async () => {
      await lab.virsh('undefine', 'web1');
      await lab.libvirtd.restart('SIGKILL');
    }, 'protected');
    assert.deepEqual(await roots(guest), ['cdp-vda']);
    assert.deepEqual(await eventsAfter(before), []);
    await assertWell();
    await lab.virsh('define', xml);

    await guest.shutdown();
    await waitState(agent, 'web1', 'stopped');
    await agent.kill('SIGKILL');
    await lab.virsh('undefine', 'web1');
    await agent.start();
    await waitDisk(agent, 'web1', 'gone', ({ state, reason }) => state === 'stopped' && /no more/.test(reason ?? ''));
    await lab.virsh('define', xml);
    await guest.start();
    await assertWell();
  });

  it('when a snapshot was taken has the overlay for the primary, and copies it if no bitmap knows it', async () => {
    const { agent, lab } = scene;
    const snapshot = async (name: string): Promise<Image> => {
      const overlay = lab.path(name);
      await guest.takeSnapshot(overlay);
      await goesOn(guest, 20);
      return { filename: overlay, format: 'qcow2' };
    };
    const before = await lastEvent();
    let overlay: Image = '';
    await whileAway(async () => (overlay = await snapshot('while-protected')), 'protected');
    await waitDisk(
      agent,
      'web1',
      'on the overlay',
      ({ primary: { source } }) => source === lab.path('while-protected'),
    );
    assert.ok(!(await eventsAfter(before)).includes('resync-finished'));
    await assertWell(overlay);

    mirror.failAll();
    await waitState(agent, 'web1', 'exposed');
    await comesBackToStaleOverlay(async () => {
      overlay = await snapshot('while-exposed');
      mirror.heal();
    });
    assert.equal((await status(agent, 'web1')).disks[0]?.primary.source, lab.path('while-exposed'));
    await assertWell(overlay);
  });

  async function comesBackToStaleOverlay(deeds: () => Promise<unknown>): Promise<void> {
    const before = await lastEvent();
    await whileAway(deeds, 'protected');
    assert.ok((await eventsAfter(before)).includes('resync-finished'), 'nothing was copied');
  }
});
