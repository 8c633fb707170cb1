import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { AgentClient } from '../../src/control/client.ts';
import { parseDomain } from '../../src/domain/domain.ts';
import type { LiveDiskStatus } from '../../src/domain/live-status.ts';
import type { DiskStatus, DomainStatus, EventName, ProtectionEvent } from '../../src/protection/model.ts';
import { imageName } from '../../src/storage/image.ts';
import type { Agent, AgentOptions } from '../lab/agent.ts';
import type { Guest } from '../lab/guest.ts';
import { Lab, type LabDomain } from '../lab/lab.ts';
import type { QemuAs } from '../lab/libvirtd.ts';
import { waitFor } from '../lab/wait.ts';

/** One laboratory with an agent for all tests of a file. Its guests end with the test that made them. */
export interface Scene {
  readonly lab: Lab;
  readonly agent: Agent;
  /** Like lab.domain(), until the end of the test. */
  guest(options: LabDomain): Promise<Guest>;
  /** Like lab.domain(), until the end of the file. */
  residentGuest(options: LabDomain): Promise<Guest>;
}

/** No wait of these tests is meant to be this long: machines differ, and nothing is said about time. */
export const patienceMs = 60_000;

/** To be called in a `describe`: sets the scene before its tests, and tells all about it when one fails. */
export function setScene(agentOptions: AgentOptions = {}, labOptions: { qemuAs?: QemuAs } = {}): Scene {
  let lab: Lab | undefined;
  let agent: Agent | undefined;
  const residents: Guest[] = [];
  let guests: Guest[] = [];
  const there = <T>(part: T | undefined): T => {
    if (part === undefined) throw new Error('the scene is not set yet');
    return part;
  };
  const scene: Scene = {
    get lab() {
      return there(lab);
    },
    get agent() {
      return there(agent);
    },
    guest: async (options) => {
      const guest = await there(lab).domain(options);
      guests.push(guest);
      return guest;
    },
    residentGuest: async (options) => {
      const guest = await there(lab).domain(options);
      residents.push(guest);
      return guest;
    },
  };

  before(async function () {
    this.timeout(patienceMs);
    lab = await Lab.start(labOptions);
    agent = await lab.agent(agentOptions);
    await waitForLibvirt(agent);
  });

  afterEach(async function () {
    this.timeout(patienceMs);
    if (this.currentTest?.state === 'failed') {
      process.stderr.write(`${await describeScene(scene, [...residents, ...guests])}\n`);
    }
    for (const { name } of guests) {
      // Off already, after a test that shut it down.
      await scene.lab.libvirtd.virsh('destroy', name);
      await scene.lab.libvirtd.virsh('undefine', name, '--managed-save', '--snapshots-metadata');
    }
    guests = [];
  });

  after(async function () {
    this.timeout(patienceMs);
    await lab?.close();
  });

  return scene;
}

/** Everything that one wants to know of a failed test: the agent's log, the events, the status and QEMU's block graph. */
export async function describeScene({ agent }: Pick<Scene, 'agent'>, guests: Guest[]): Promise<string> {
  const parts = [`=== the agent's log\n${lastLines(agent.logPath, 120)}`];
  parts.push(`=== events\n${lastLines(join(agent.storeDir, 'events.jsonl'), 60)}`);
  for (const guest of guests) {
    const attempts: [string, () => string | Promise<string>][] = [
      ['state', () => guest.state()],
      ['status', async () => JSON.stringify(await status(agent, guest.name), null, 2)],
      ['block graph', () => describeGraph(guest)],
      ['block jobs', async () => JSON.stringify(await guest.qmp('query-block-jobs'))],
      [
        'witness',
        () => `acknowledged ${guest.witness.acknowledged()}, errors ${JSON.stringify(guest.witness.errors.slice(-5))}`,
      ],
      ['qemu log', () => guest.qemuLog()],
    ];
    for (const [what, look] of attempts) parts.push(`=== ${guest.name}: ${what}\n${await lookOrError(look)}`);
  }
  return parts.join('\n');
}

/** A scene that fell apart is told as far as it can be. */
async function lookOrError(look: () => string | Promise<string>): Promise<string> {
  try {
    return await look();
  } catch (error) {
    return String(error);
  }
}

function lastLines(path: string, count: number): string {
  return existsSync(path) ? readFileSync(path, 'utf8').trimEnd().split('\n').slice(-count).join('\n') : `no ${path}`;
}

interface Graph {
  nodes: { id: number; name: string; type: string }[];
  edges: { parent: number; child: number; name: string }[];
}

/** Who uses whom in QEMU, a line each: `cdp-vda -children.1-> cdp-vda-mirror`. */
async function describeGraph(guest: Guest): Promise<string> {
  const { nodes, edges } = (await guest.qmp('x-debug-query-block-graph')) as Graph;
  const nameOf = (id: number): string => nodes.find((node) => node.id === id)?.name ?? String(id);
  const lines = edges.map(({ parent, child, name }) => `${nameOf(parent)} -${name}-> ${nameOf(child)}`);
  const alone = nodes.filter(({ id }) => !edges.some(({ parent, child }) => parent === id || child === id));
  return [...lines, ...alone.map(({ name, type }) => `${name} (${type}, alone)`)].join('\n');
}

/** The names of all block nodes of the guest's QEMU. */
export async function nodeNames(guest: Guest): Promise<string[]> {
  const { nodes } = (await guest.qmp('x-debug-query-block-graph')) as Graph;
  return nodes.filter(({ type }) => type === 'block-driver').map(({ name }) => name);
}

/** The node that each disk of the guest has as its root. */
export async function roots(guest: Guest): Promise<string[]> {
  const devices = (await guest.qmp('query-block')) as { inserted?: { 'node-name'?: string } }[];
  return devices.flatMap(({ inserted }) => inserted?.['node-name'] ?? []);
}

/** As `virt-cdp status DOMAIN --json` has it, without a process for each look. */
export async function status(agent: Agent, domain: string): Promise<DomainStatus> {
  return new AgentClient({ socketPath: agent.socket }).domain(domain);
}

/** Waits until a disk's status is as `fits` wants it; the first disk unless named. */
export async function waitDisk(
  agent: Agent,
  domain: string,
  what: string,
  fits: (disk: DiskStatus) => boolean,
  dev?: string,
): Promise<DiskStatus> {
  let last: unknown;
  return waitFor(
    `${domain} ${dev ?? ''} to be ${what}`,
    async () => {
      const { disks } = await status(agent, domain);
      const disk = disks.find((one) => dev === undefined || one.dev === dev);
      last = disk;
      return disk !== undefined && fits(disk) ? disk : undefined;
    },
    patienceMs,
    () => JSON.stringify(last, null, 2),
  );
}

export async function waitState(
  agent: Agent,
  domain: string,
  state: DiskStatus['state'],
  dev?: string,
): Promise<DiskStatus> {
  return waitDisk(agent, domain, state, (disk) => disk.state === state, dev);
}

/** The agent's socket answers before the agent has found libvirt. */
export async function waitForLibvirt(agent: Agent): Promise<void> {
  const client = new AgentClient({ socketPath: agent.socket });
  await waitFor(
    'the agent to find libvirt',
    () =>
      client.domains(true).then(
        () => true,
        () => false,
      ),
    patienceMs,
  );
}

/** The domain's events so far, of one kind or all. */
export async function events(agent: Agent, domain: string, event?: EventName): Promise<ProtectionEvent[]> {
  const found: ProtectionEvent[] = [];
  for await (const one of new AgentClient({ socketPath: agent.socket }).events(0)) {
    if (one.domain === domain && (event === undefined || one.event === event)) found.push(one);
  }
  return found;
}

/** A disk's `<source>` in the XML of the next start, or in the live one, as virt-cdp names images. */
export async function sourceOf(guest: Guest, which: 'next start' | 'live', dev = 'vda'): Promise<string | null> {
  const { disks } = parseDomain(await guest.xml(...(which === 'live' ? [] : ['--inactive'])));
  const image = disks.find((disk) => disk.dev === dev)?.image;
  return image == null ? null : imageName(image);
}

/** What the live metadata says of a disk; null if nothing. */
export async function liveStatus(guest: Guest, dev = 'vda'): Promise<LiveDiskStatus | null> {
  return parseDomain(await guest.xml()).status?.disks.find((disk) => disk.dev === dev) ?? null;
}

/** The live metadata is written after the guest runs again, so it may come a moment after the status. */
export async function waitLiveStatus(guest: Guest, state: string, dev = 'vda'): Promise<LiveDiskStatus> {
  let last: LiveDiskStatus | null = null;
  return waitFor(
    `the live metadata to say that ${dev} is ${state}`,
    async () => {
      last = await liveStatus(guest, dev);
      return last?.state === state ? last : null;
    },
    patienceMs,
    () => JSON.stringify(last),
  );
}
