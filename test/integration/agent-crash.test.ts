import assert from 'node:assert/strict';
import { truncate } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { AgentClient } from '../../src/control/client.ts';
import { AgentUnreachableError } from '../../src/control/transport.ts';
import { CdpError } from '../../src/errors.ts';
import type { DiskState } from '../../src/protection/model.ts';
import type { Agent } from '../lab/agent.ts';
import type { Guest } from '../lab/guest.ts';
import type { NbdServer } from '../lab/storage.ts';
import { waitFor } from '../lab/wait.ts';
import { assertIdentical, assertNothingLost, endWell, goesOn } from './copies-hold.ts';
import {
  events,
  nodeNames,
  patienceMs,
  roots,
  setScene,
  status,
  waitDisk,
  waitForLibvirt,
  waitState,
} from './scene.ts';

/** Small, so that a full sync takes no time. */
const sizeBytes = 16 << 20;
const cmdline = 'witness.rate=100';

/** No surgery has as many steps; reaching it means that the agent does not die. */
const mostSteps = 80;

describe('a crash of the agent', function () {
  this.timeout(400_000);
  const scene = setScene();
  let agent: Agent;
  /** The agent is one that dies after some steps. */
  let doomed = false;
  let unanswered: Parameters<AgentClient['act']> | null = null;

  interface Pair {
    guest: Guest;
    primary: NbdServer;
    mirror: NbdServer;
  }

  async function guestWithMirror(name: string, { iothread = false } = {}): Promise<Pair> {
    const primary = await scene.lab.nbd({ name: `${name}-primary`, sizeBytes });
    const mirror = await scene.lab.nbd({ name: `${name}-mirror`, sizeBytes });
    const image = { format: 'raw' as const, nbd: primary.address };
    const guest = await scene.guest({
      name,
      // With an I/O thread there are several requests in flight.
      cmdline: iothread ? `${cmdline} witness.depth=4` : cmdline,
      disks: [{ dev: 'vda', bus: 'virtio', iothread, image }],
    });
    await goesOn(guest, 10);
    return { guest, primary, mirror };
  }

  async function protectedGuest(name: string, options: { iothread?: boolean } = {}): Promise<Pair> {
    const pair = await guestWithMirror(name, options);
    await agent.mustCdp('protect', name, '--disk', 'vda', '--mirror', pair.mirror.uri);
    return pair;
  }

  /** Ends the agent that runs, and starts one that dies after its n-th step, or never. */
  async function newAgent(dieAfterSteps?: number): Promise<void> {
    await agent.kill('SIGKILL');
    doomed = dieAfterSteps !== undefined;
    agent = await scene.lab.agent(
      dieAfterSteps === undefined ? {} : { env: { VIRT_CDP_TEST_DIE_AFTER_STEPS: String(dieAfterSteps) } },
    );
    await waitForLibvirt(agent);
    if (!doomed) await askAgain();
  }

  function agentLives(): boolean {
    try {
      process.kill(agent.pid, 0);
      return true;
    } catch {
      return false;
    }
  }

  /** Waits for a state, or for the agent's end; true if it lives. */
  async function reaches(domain: string, state: DiskState): Promise<boolean> {
    const outcome = await waitFor(
      `${domain} to be ${state}, or the agent to die`,
      async () => {
        if (!agentLives()) return 'dead';
        const now = await status(agent, domain).catch(() => null);
        return now?.state === state ? 'reached' : null;
      },
      patienceMs,
    );
    return outcome === 'reached';
  }

  /** Asks for something, of an agent that may die of it, or before it. */
  async function ask(...request: Parameters<AgentClient['act']>): Promise<void> {
    try {
      await new AgentClient({ socketPath: agent.socket }).act(...request);
    } catch (error) {
      if (!(error instanceof AgentUnreachableError)) throw error;
      unanswered = request;
      await waitFor(
        'the agent to be dead',
        () => !agentLives(),
        patienceMs,
        () => String(error),
      );
    }
  }

  /** Asks again what an agent that died did not answer; if it had taken that up, there may be nothing left to ask for. */
  async function askAgain(): Promise<void> {
    if (unanswered === null) return;
    const request = unanswered;
    unanswered = null;
    try {
      await new AgentClient({ socketPath: agent.socket }).act(...request);
    } catch (refusal) {
      assert.ok(refusal instanceof CdpError, String(refusal));
    }
  }

  /** Both copies get every write, hold all that was acknowledged, are equal, and nothing of a surgery is left. */
  async function assertProtected(guest: Guest, primary: NbdServer, mirror: NbdServer): Promise<void> {
    await waitState(agent, guest.name, 'protected');
    assert.deepEqual(await roots(guest), ['cdp-vda']);
    assert.equal((await nodeNames(guest)).includes('cdp-surgery'), false);
    await goesOn(guest, 5);
    await assertNothingLost(guest, [primary.file, mirror.file]);
    await guest.suspend();
    await assertIdentical(primary.file, mirror.file);
    await guest.resume();
  }

  /** Runs `round` with an agent that dies after 1, 2, 3 ... steps, until one has so many to live that it comes through. */
  async function atEachStep(round: () => Promise<'died' | 'came through'>): Promise<void> {
    for (let n = 1; n <= mostSteps; n++) {
      await newAgent(n);
      try {
        if ((await round()) === 'came through') return;
      } catch (error) {
        throw new Error(`the agent died after step ${n}: ${String(error)}`, { cause: error });
      }
    }
    throw new Error('no agent came through');
  }

  /** After a death, a new agent that does not die. */
  async function recover(): Promise<void> {
    if (!agentLives()) await newAgent();
  }

  /** The end of the part of a round in which the agent may die: from here on it is one that does not. */
  async function recoverAtLast(): Promise<'died' | 'came through'> {
    const fate = doomed && agentLives() ? 'came through' : 'died';
    if (doomed) await newAgent();
    return fate;
  }

  before(() => {
    agent = scene.agent;
  });

  afterEach(async function () {
    this.timeout(patienceMs);
    await newAgent();
  });

  it('at any step of arming leads to a protected domain', async () => {
    const { guest, primary, mirror } = await guestWithMirror('web1');
    await atEachStep(async () => {
      await ask('web1', 'protect', { disk: 'vda', mirror: mirror.uri, overwriteMirror: true });
      await reaches('web1', 'protected');
      const fate = await recoverAtLast();
      await assertProtected(guest, primary, mirror);
      await agent.mustCdp('unprotect', 'web1');
      await goesOn(guest, 5);
      return fate;
    });
    await guest.shutdown();
    await assertNothingLost(guest, [primary.file]);
  });

  it('at any step of degrading, or of arming again, leads to a protected domain', async () => {
    const { guest, primary, mirror } = await protectedGuest('web2');
    await atEachStep(async () => {
      mirror.failAll();
      const degraded = await reaches('web2', 'exposed');
      await recover();
      if (!degraded) await waitState(agent, 'web2', 'exposed');
      await goesOn(guest, 5);
      mirror.heal();
      if (degraded) await reaches('web2', 'protected');
      const fate = await recoverAtLast();
      await assertProtected(guest, primary, mirror);
      return fate;
    });
    await endWell(guest, [primary.file, mirror.file]);
  });

  it('at any step of failing over, or of the rebuild, leads to a domain on its new primary', async () => {
    const { guest, primary, mirror } = await protectedGuest('web3');
    const spare = await scene.lab.nbd({ name: 'web3-spare', sizeBytes });
    let [now, next] = [primary, spare];
    await atEachStep(async () => {
      now.failAll();
      const moved = await reaches('web3', 'failed-over');
      await recover();
      if (!moved) await waitState(agent, 'web3', 'failed-over');
      await goesOn(guest, 5);

      await wipe(next);
      await ask('web3', 'rebuild', { to: next.uri });
      if (moved) await reaches('web3', 'protected');
      const fate = await recoverAtLast();
      await assertProtected(guest, next, mirror);
      now.heal();
      [now, next] = [next, now];
      return fate;
    });
    assert.equal((await status(agent, 'web3')).disks[0]?.primary.source, now.uri);
    await endWell(guest, [now.file, mirror.file]);
  });

  it('at any step of the way back to the original primary leads to a domain on it', async () => {
    const { guest, primary, mirror } = await protectedGuest('web4');
    await atEachStep(async () => {
      await ask('web4', 'failover', {});
      const moved = await reaches('web4', 'failed-over');
      await recover();
      if (!moved) await waitState(agent, 'web4', 'failed-over');
      await goesOn(guest, 5);
      await ask('web4', 'rebuild', { to: 'original' });
      if (moved) await reaches('web4', 'protected');
      const fate = await recoverAtLast();
      await assertProtected(guest, primary, mirror);
      return fate;
    });
    await endWell(guest, [primary.file, mirror.file]);
  });

  it('at any step of hold and release loses nothing, even if a stranger resumes the domain before the next agent comes', async () => {
    const { guest, primary, mirror } = await protectedGuest('web10', { iothread: true });
    const resumedByStranger = async (): Promise<void> => {
      if (agentLives()) return;
      await scene.lab.libvirtd.virsh('resume', 'web10');
      // Time for the guest to try and write.
      await sleep(200);
    };
    await atEachStep(async () => {
      await ask('web10', 'hold', {});
      const held = await reaches('web10', 'held');
      await resumedByStranger();
      await recover();
      if (!held) await waitState(agent, 'web10', 'held');
      await goesOn(guest, 5);
      await ask('web10', 'release', {});
      if (held) await reaches('web10', 'protected');
      await resumedByStranger();
      const fate = await recoverAtLast();
      await assertProtected(guest, primary, mirror);
      return fate;
    });
    await endWell(guest, [primary.file, mirror.file]);
  });

  it('together with the whole host, at any step of failing over, leads to a start from a copy that lacks nothing', async () => {
    const { guest, primary, mirror } = await protectedGuest('web9');
    await atEachStep(async () => {
      const errorsBefore = guest.witness.errors.length;
      primary.failAll();
      await reaches('web9', 'failed-over');
      const fate = doomed && agentLives() ? 'came through' : 'died';
      await agent.kill('SIGKILL');
      // Where the guest goes on already, it is promised more.
      if (await guestRuns(guest)) await goesOn(guest, 20);
      await guest.destroy();
      primary.heal();

      await newAgent();
      const boots = guest.witness.boots;
      await agent.mustCdp('start', 'web9');
      await guest.witness.waitReady(patienceMs, boots + 1);
      const disk = await waitDisk(agent, 'web9', 'under way', ({ runningOn }) => runningOn !== 'none');
      assert.equal(guest.witness.errors.length, errorsBefore);
      await assertNothingLost(guest, [disk.runningOn === 'mirror' ? mirror.file : primary.file]);
      if (disk.runningOn === 'mirror') await agent.mustCdp('rebuild', 'web9', '--to', 'original');
      await assertProtected(guest, primary, mirror);
      return fate;
    });
    await endWell(guest, [primary.file, mirror.file]);
  });

  it('before the primary fails leaves the guest waiting, until the next agent moves it', async () => {
    const { guest, primary, mirror } = await protectedGuest('web5');
    await agent.kill('SIGKILL');
    await goesOn(guest, 20);
    primary.failAll();
    await guest.waitState('paused', patienceMs);
    await agent.start();
    await waitState(agent, 'web5', 'failed-over');
    await goesOn(guest, 50);
    await endWell(guest, [mirror.file]);
  });

  it('before the mirror fails leaves the guest waiting, until the next agent goes on without', async () => {
    const { guest, primary, mirror } = await protectedGuest('web6');
    await agent.kill('SIGKILL');
    await goesOn(guest, 20);
    mirror.failAll();
    await guest.waitState('paused', patienceMs);
    await agent.start();
    await waitState(agent, 'web6', 'exposed');
    await goesOn(guest, 50);
    mirror.heal();
    await waitState(agent, 'web6', 'protected');
    await endWell(guest, [primary.file, mirror.file]);
  });

  it('is over when the next agent starts, even if the primary fails at that very moment', async () => {
    const { guest, primary, mirror } = await protectedGuest('web8');
    await agent.kill('SIGKILL');
    await Promise.all([agent.start(), goesOn(guest, 10).then(() => primary.failAll())]);
    await waitState(agent, 'web8', 'failed-over');
    await goesOn(guest, 50);
    await agent.restart('SIGKILL');
    primary.heal();
    await agent.mustCdp('rebuild', 'web8', '--to', 'original');
    await agent.restart('SIGKILL');
    mirror.failAll();
    await waitState(agent, 'web8', 'exposed');
    await goesOn(guest, 50);
    await endWell(guest, [primary.file]);
  });

  it('or an orderly end, as at an upgrade, leaves the guest protected', async () => {
    const { guest, primary, mirror } = await protectedGuest('web7');
    const before = (await events(agent, 'web7')).length;
    await agent.kill('SIGTERM');
    assert.deepEqual(await roots(guest), ['cdp-vda']);
    await goesOn(guest, 50);
    await agent.start();
    await waitDisk(
      agent,
      'web7',
      'seen on both copies',
      ({ state, runningOn }) => state === 'protected' && runningOn === 'both',
    );
    assert.equal((await events(agent, 'web7')).length, before);
    await endWell(guest, [primary.file, mirror.file]);
  });
});

async function guestRuns(guest: Guest): Promise<boolean> {
  const { running } = (await guest.qmp('query-status')) as { running: boolean };
  return running;
}

/** Makes a served image empty again. */
async function wipe(server: NbdServer): Promise<void> {
  await truncate(server.file, 0);
  await truncate(server.file, sizeBytes);
}
