import { setTimeout as sleep } from 'node:timers/promises';
import { errorText } from '../../src/errors.ts';
import { waitForLibvirt } from '../integration/scene.ts';
import { waitFor } from '../lab/wait.ts';
import { statusInTime } from './checks.ts';
import { mend, rebuild, start, told, type Outcome } from './remedies.ts';
import type { Deed, DeedArguments, DeedName } from './schedule.ts';
import { settle } from './settle.ts';
import { verify } from './verify.ts';
import {
  beginBackup,
  blockCommit,
  blockCopy,
  defineOldXml,
  endBackup,
  managedSave,
  plugAndUnplug,
  saveAndRestore,
  snapshot,
} from './strangers.ts';
import { Violation } from './violation.ts';
import type { DomainInForce, World } from './world.ts';

export type Deeds = { [Name in DeedName]: (world: World, args: DeedArguments[Name]) => Promise<Outcome> };

const deeds: Deeds = {
  breakCopy: async (world, { fault, ...which }) => {
    const { server } = world.copy(which);
    if (server === null) return 'skipped: not on a server';
    if (world.faults.has(server)) return 'skipped: broken already';
    if (fault === 'errors' || fault === 'read-errors') server.failReads();
    if (fault === 'errors' || fault === 'write-errors') server.failWrites();
    if (fault === 'dead') {
      world.crashed.add(server);
      await server.kill();
    }
    if (fault === 'hung') server.hang();
    const { witness } = world.domain(which.domain).guest;
    witness.promised(which.dev);
    world.faults.set(server, { fault, acknowledged: witness.acknowledged(which.dev) });
    return 'done';
  },
  mendCopy: async (world, which) => {
    const { server } = world.copy(which);
    if (server === null) return 'skipped: not on a server';
    return mend(world, server);
  },
  crashServer: async (world, which) => {
    const { server } = world.copy(which);
    if (server === null) return 'skipped: not on a server';
    // What the only current copy loses nobody has, and nobody finds out.
    const disk = (await statusInTime(world, which.domain))?.disks.find(({ dev }) => dev === which.dev);
    if (disk?.[which.side].current === true && !disk[which.side === 'primary' ? 'mirror' : 'primary'].current)
      return 'skipped: the only current copy';
    world.crashed.add(server);
    await server.restart();
    await mend(world, server);
    return 'done';
  },
  hang: async (world, { ms, ...which }) => {
    const { server } = world.copy(which);
    if (server === null || world.faults.has(server)) return 'skipped: not on a server that answers';
    const { pid } = server;
    server.hang();
    await sleep(ms);
    if (!server.running || server.pid !== pid) return 'done; it was killed meanwhile';
    server.unhang();
    return 'done';
  },
  killAgent: (world, { downMs }) => downAndUp(world, 'SIGKILL', downMs),
  stopAgent: (world, { downMs }) => downAndUp(world, 'SIGTERM', downMs),
  restartLibvirtd: async (world, { signal, downMs }) => {
    if (world.libvirtdIsDown) return 'skipped: it is down';
    const { libvirtd } = world.lab;
    world.libvirtdIsDown = true;
    await libvirtd.stop(signal);
    await sleep(downMs);
    await libvirtd.restart();
    world.libvirtdIsDown = false;
    return 'done';
  },
  killQemu: async (world, { domain }) => {
    const one = world.domain(domain);
    if (!(await world.isRunning(domain))) return 'skipped: it does not run';
    const pid = one.guest.qemuPid;
    process.kill(pid, 'SIGKILL');
    return isOff(world, one, pid);
  },
  suspend: async (world, { domain }) => {
    const outcome = await world.virsh('suspend', domain);
    if (outcome === 'done') world.domain(domain).suspendAsked = true;
    return outcome;
  },
  resume: async (world, { domain }) => {
    goesOn(world.domain(domain));
    return world.virsh('resume', domain);
  },
  qmpStop: async (world, { domain }) => {
    const outcome = await world.virsh('qemu-monitor-command', domain, '{"execute":"stop"}');
    if (outcome === 'done') world.domain(domain).suspendAsked = true;
    return outcome;
  },
  qmpCont: async (world, { domain }) => {
    goesOn(world.domain(domain));
    return world.virsh('qemu-monitor-command', domain, '{"execute":"cont"}');
  },
  reset: (world, { domain }) => world.virsh('reset', domain),
  destroy: async (world, { domain }) => {
    const one = world.domain(domain);
    const pid = pidOf(one);
    const outcome = await world.virsh('destroy', domain);
    return outcome === 'done' ? isOff(world, one, pid) : outcome;
  },
  shutDown: async (world, { domain }) => {
    const outcome = await world.virsh('shutdown', domain);
    if (outcome !== 'done') return outcome;
    const one = world.domain(domain);
    try {
      await waitFor(
        `${domain} to be off`,
        async () => {
          // QEMU 7.2 may sleep through libvirt's SIGTERM; a QMP command wakes it.
          if ((await world.state(domain)).startsWith('in shutdown'))
            await world.virsh('qemu-monitor-command', domain, '{"execute":"query-status"}');
          return !(await world.isRunning(domain));
        },
        8_000,
      );
    } catch {
      const pid = pidOf(one);
      await world.virsh('destroy', domain);
      return `${await isOff(world, one, pid)}, by destroy: it did not shut down`;
    }
    goesOn(one);
    return 'done';
  },
  managedSave,
  saveAndRestore,
  snapshot,
  blockCommit,
  blockCopy,
  beginBackup,
  endBackup,
  defineOldXml,
  plugAndUnplug,
  start: (world, { domain, by }) => start(world, world.domain(domain), by),
  hold: async (world, { domain }) => told(world.client.act(domain, 'hold', {})),
  release: async (world, { domain }) => told(world.client.act(domain, 'release', {})),
  failOver: async (world, { domain, dev }) => told(world.client.act(domain, 'failover', { disk: dev })),
  rebuild: (world, { domain, dev, to }) => rebuild(world, domain, dev, to),
  resync: async (world, { domain, full }) => told(world.client.act(domain, 'resync', { full })),
  verify,
  reprotect: async (world, { domain, dev }) => {
    const outcome = await told(world.client.act(domain, 'unprotect', { disk: dev }));
    if (outcome !== 'done') return outcome;
    await waitFor(
      `${domain}'s ${dev} to be unprotected`,
      async () => !((await world.status(domain))?.disks ?? []).some((disk) => disk.dev === dev),
      20_000,
    ).catch(() => undefined);
    return told(world.protect(world.domain(domain), world.disk(domain, dev)));
  },
  settle,
};

export async function perform(world: World, deed: Deed): Promise<Outcome> {
  try {
    return await (deeds[deed.deed] as (world: World, args: Deed) => Promise<Outcome>)(world, deed);
  } catch (error) {
    if (error instanceof Violation) throw error;
    throw new Error(`${deed.deed}: ${errorText(error)}`, { cause: error });
  }
}

async function downAndUp(world: World, signal: 'SIGKILL' | 'SIGTERM', downMs: number): Promise<Outcome> {
  if (world.agentIsDown) return 'skipped: it is down';
  const { agent } = world;
  world.agentIsDown = true;
  await agent.kill(signal);
  await sleep(downMs);
  await agent.start();
  world.agentIsDown = false;
  await waitForLibvirt(agent);
  return 'done';
}

/** Whatever suspended the domain has come to its end. */
function goesOn(domain: DomainInForce): void {
  domain.suspendAsked = false;
  domain.suspendSeen = false;
}

/** Waits for the end of that QEMU: another deed may have started the domain again already. */
async function isOff(world: World, domain: DomainInForce, pid: number | null): Promise<Outcome> {
  goesOn(domain);
  const { name } = domain;
  const ended = async (): Promise<boolean> => pidOf(domain) !== pid || !(await world.isRunning(name));
  await waitFor(`${name} to be off`, ended, 30_000);
  return 'done';
}

/** null while libvirt knows of no QEMU of the domain. */
function pidOf({ guest }: DomainInForce): number | null {
  try {
    return guest.qemuPid;
  } catch {
    return null;
  }
}
