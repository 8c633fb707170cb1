import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { AgentClient } from '../../src/control/client.ts';
import { tinyDomainXml, writeBootSector } from '../lab/boot-sector.ts';
import type { NbdServer } from '../lab/storage.ts';
import { must } from '../lab/run.ts';
import { waitFor } from '../lab/wait.ts';
import { events, patienceMs, setScene, status, waitForLibvirt, waitState } from './scene.ts';

const healthyDomains = 18;

describe('twenty domains and one', function () {
  this.timeout(180_000);
  const scene = setScene({ config: { mirror: { timeout_ms: 2000 } } });

  interface Tiny {
    name: string;
    primary: NbdServer;
    mirror: NbdServer;
  }

  async function tiny(name: string, policy: 'available' | 'strict' = 'available'): Promise<Tiny> {
    const { lab } = scene;
    const primary = await lab.nbd({ name: `${name}-primary`, sizeBytes: 1 << 20 });
    await writeBootSector(primary.file);
    const mirror = await lab.nbd({ name: `${name}-mirror`, sizeBytes: 1 << 20 });
    if (!('socket' in primary.address)) throw new Error('the lab serves on unix sockets');
    const xml = join(lab.root, `${name}.xml`);
    writeFileSync(xml, tinyDomainXml(name, primary.address));
    await lab.virsh('define', xml);
    await lab.virsh('start', name);
    await client().act(name, 'protect', { disk: 'vda', mirror: mirror.uri, policy });
    return { name, primary, mirror };
  }

  const client = (): AgentClient => new AgentClient({ socketPath: scene.agent.socket });

  async function writes(name: string): Promise<number> {
    return Number(/vda wr_req (\d+)/.exec(await scene.lab.virsh('domblkstat', name, 'vda'))?.[1] ?? NaN);
  }

  /** The guest writes, and each write is acknowledged. */
  async function goesOn(name: string): Promise<void> {
    const before = await writes(name);
    await waitFor(`${name} to write`, async () => (await writes(name)) > before, patienceMs);
  }

  let stopped: Tiny;
  let hung: Tiny;
  let strict: Tiny;
  const healthy: Tiny[] = [];

  before(async function () {
    this.timeout(3 * patienceMs);
    await putStoreOnFreezable();
    stopped = await tiny('stopped');
    hung = await tiny('hung');
    strict = await tiny('strict', 'strict');
    for (let index = 0; index < healthyDomains; index++) healthy.push(await tiny(`web${index}`));
    for (const { name } of [stopped, hung, strict, ...healthy]) await waitState(scene.agent, name, 'protected');
  });

  /** A file system of its own, whose writers can be made to wait. */
  async function putStoreOnFreezable(): Promise<void> {
    const { lab, agent } = scene;
    const image = lab.path('store.img');
    await must('truncate', '--size=32M', image);
    await must('mkfs.ext4', '-q', image);
    await agent.kill('SIGTERM');
    await inside('mount', '-o', 'loop', image, agent.storeDir);
    await agent.start();
    await waitForLibvirt(agent);
  }

  const inside = (...command: [string, ...string[]]): Promise<string> =>
    must(...scene.lab.libvirtd.namespace.command(...command));

  async function allFailOver(domains: Tiny[]): Promise<void> {
    for (const { primary } of domains) primary.failAll();
    for (const { name } of domains) await waitState(scene.agent, name, 'failed-over');
    await Promise.all(domains.map(({ name }) => goesOn(name)));
  }

  it('of which one has a QEMU that is stopped and one has copies that hang: all others fail over', async () => {
    const { lab, agent } = scene;
    const qemu = lab.libvirtd.qemuPid(stopped.name);
    process.kill(qemu, 'SIGSTOP');
    hung.primary.hang();
    hung.mirror.hang();
    const asked = client()
      .act(stopped.name, 'hold', {})
      .catch(() => undefined);
    try {
      await waitState(agent, hung.name, 'broken');
      await allFailOver(healthy.slice(0, healthyDomains / 2));
      assert.match((await status(agent, hung.name)).disks[0]?.reason ?? '', /neither copy has answered since/);
    } finally {
      process.kill(qemu, 'SIGCONT');
      hung.primary.unhang();
      hung.mirror.unhang();
    }
    await asked;
    await waitState(agent, stopped.name, 'held');
    await waitState(agent, hung.name, 'protected');
    await goesOn(hung.name);
  });

  it('whose records can not be written, because the store hangs, fail over all the same, and are recorded when it goes on; one with policy strict waits for its record', async () => {
    const { agent, lab } = scene;
    const others = healthy.slice(healthyDomains / 2);
    await inside('fsfreeze', '--freeze', agent.storeDir);
    try {
      strict.primary.failAll();
      await allFailOver(others);
      await waitFor(
        'the strict one to say what it waits for',
        async () => (await events(agent, strict.name, 'record-not-durable')).length > 0,
        patienceMs,
      );
      assert.match(await lab.virsh('domstate', strict.name), /^paused/);
      assert.deepEqual(await events(agent, strict.name, 'failed-over'), []);
      assert.notEqual((await status(agent, strict.name)).state, 'failed-over');
    } finally {
      await inside('fsfreeze', '--unfreeze', agent.storeDir);
    }
    await waitState(agent, strict.name, 'failed-over');
    await goesOn(strict.name);
    for (const { name } of others) {
      assert.ok((await events(agent, name, 'record-not-durable')).length > 0, name);
      const { uuid } = await status(agent, name);
      await waitFor(
        `the record of ${name}`,
        // A record that is being written has another name for a moment.
        () =>
          inside('grep', '-q', '"state": *"failed-over"', `${agent.storeDir}/domains/${uuid}.json`).then(
            () => true,
            () => false,
          ),
        patienceMs,
      );
    }
  });
});
