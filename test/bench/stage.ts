import { randomFillSync } from 'node:crypto';
import { closeSync, mkdtempSync, openSync, rmSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import type { TomlTable } from 'smol-toml';
import { AgentClient } from '../../src/control/client.ts';
import type { EventName, ProtectionEvent } from '../../src/protection/model.ts';
import { waitForLibvirt } from '../integration/scene.ts';
import type { Agent } from '../lab/agent.ts';
import { Lab, type LabNbd } from '../lab/lab.ts';
import { createImage, type NbdServer } from '../lab/storage.ts';
import { waitFor } from '../lab/wait.ts';

export const patienceMs = 300_000;

/** A laboratory with its agent, whose images are in memory: what is measured is the software, not this machine's disk. */
export class Stage {
  readonly lab: Lab;
  readonly agent: Agent;
  readonly client: AgentClient;
  readonly memory: string;

  private constructor(lab: Lab, agent: Agent, memory: string) {
    this.lab = lab;
    this.agent = agent;
    this.client = new AgentClient({ socketPath: agent.socket });
    this.memory = memory;
  }

  static async with<T>(use: (stage: Stage) => Promise<T>, config: TomlTable = {}): Promise<T> {
    const memory = mkdtempSync('/dev/shm/virt-cdp-bench-');
    const forget = (): void => rmSync(memory, { recursive: true, force: true });
    process.once('exit', forget);
    const lab = await Lab.start();
    try {
      const agent = await lab.agent({ config: { log: { level: 'info' }, ...config } });
      await waitForLibvirt(agent);
      return await use(new Stage(lab, agent, memory));
    } finally {
      await lab.close();
      process.off('exit', forget);
      forget();
    }
  }

  /**
   * A server of a raw image in memory. It does not tell of holes: to look for one, tmpfs goes over all pages up to it (15 ms for 1 GiB; a
   * disk's file system 2 us), and no write is done meanwhile (mm/shmem.c: shmem_file_llseek).
   */
  async nbd({ name, sizeBytes = 64 << 20, ...options }: LabNbd): Promise<NbdServer> {
    const file = await createImage(join(this.memory, `${name}.raw`), 'raw', sizeBytes);
    return this.lab.nbd({ name, ...options, file, noExtents: true });
  }

  async protect(domain: string, disk: string, mirror: string): Promise<void> {
    await this.client.act(domain, 'protect', { disk, mirror, overwriteMirror: true });
    await waitFor(
      `${domain} ${disk} to be protected`,
      async () => (await this.client.domain(domain)).disks.find(({ dev }) => dev === disk)?.state === 'protected',
      patienceMs,
      async () => JSON.stringify(await this.client.domain(domain), null, 2),
    );
  }

  /** The number of the last event; what is waited for afterwards comes later. */
  async lastEvent(): Promise<number> {
    let last = 0;
    for await (const { seq } of this.client.events(0)) last = seq;
    return last;
  }

  /** The next event of a kind of each of these domains, after another; nobody is asked meanwhile. */
  async eventOfAll(since: number, domains: readonly string[], event: EventName): Promise<ProtectionEvent[]> {
    const missing = new Set(domains);
    const found: ProtectionEvent[] = [];
    if (missing.size === 0) return found;
    const given = AbortSignal.timeout(patienceMs);
    for await (const one of this.client.events(since, { follow: true, signal: given })) {
      if (one.event !== event || !missing.delete(one.domain)) continue;
      found.push(one);
      if (missing.size === 0) return found;
    }
    const [first = ''] = missing;
    const status = JSON.stringify(await this.client.domain(first), null, 2);
    throw new Error(`waited ${patienceMs} ms in vain for ${event} of ${missing.size} of ${domains.length}: ${status}`);
  }

  /** The next event of a kind, of a domain, after another. */
  async eventAfter(since: number, domain: string, event: EventName): Promise<ProtectionEvent> {
    const given = AbortSignal.timeout(patienceMs);
    for await (const one of this.client.events(since, { follow: true, signal: given }))
      if (one.domain === domain && one.event === event) return one;
    throw new Error(`waited ${patienceMs} ms in vain for ${event} of ${domain}`);
  }
}

/** How long the guest stood still, by QEMU's own STOP and RESUME. */
export function pausedMs({ event, detail }: ProtectionEvent): number {
  const { pausedMs: ms } = detail;
  if (typeof ms !== 'number') throw new Error(`the event ${event} does not tell how long the guest was paused`);
  return ms;
}

/** So that no part of it is a hole, or like another. */
export function fillAtRandom(path: string, sizeMiB: number): void {
  const chunk = Buffer.alloc(1 << 20);
  const file = openSync(path, 'r+');
  for (let index = 0; index < sizeMiB; index++)
    writeSync(file, randomFillSync(chunk), 0, chunk.length, index * chunk.length);
  closeSync(file);
}
