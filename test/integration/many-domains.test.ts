import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { AgentClient } from '../../src/control/client.ts';
import { tinyDomainXml, writeBootSector } from '../lab/boot-sector.ts';
import type { NbdServer } from '../lab/storage.ts';
import { FreezableFolder } from '../lab/freezable.ts';
import { waitFor } from '../lab/wait.ts';
import { events, patienceMs, setScene, status, waitForLibvirt, waitState } from './scene.ts';

/** Those that fail over while another hangs, and those that do while the store hangs. */
const failing = 9;
const others = 10;

describe('nineteen domains and three', function () {
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
  const healthy: Record<'failing' | 'others', Tiny[]> = { failing: [], others: [] };
  let store: FreezableFolder;

  before(async function () {
    this.timeout(3 * patienceMs);
    await putStoreOnFreezable();
    stopped = await tiny('stopped');
    hung = await tiny('hung');
    strict = await tiny('strict', 'strict');
    for (let index = 0; index < failing; index++) healthy.failing.push(await tiny(`web${index}`));
    for (let index = 0; index < others; index++) healthy.others.push(await tiny(`mail${index}`));
    for (const { name } of [stopped, hung, strict, ...healthy.failing, ...healthy.others])
      await waitState(scene.agent, name, 'protected');
  });

  async function putStoreOnFreezable(): Promise<void> {
    const { lab, agent } = scene;
    await agent.kill('SIGTERM');
    store = await FreezableFolder.mount(lab, agent.storeDir, 32 << 20);
    await agent.start();
    await waitForLibvirt(agent);
  }

  async function allFailOver(domains: Tiny[]): Promise<void> {
    for (const { primary } of domains) primary.failAll();
    for (const { name } of domains) await waitState(scene.agent, name, 'failed-over');
    await Promise.all(domains.map(({ name }) => goesOn(name)));
  }

  async function allLoseTheirMirrors(domains: Tiny[]): Promise<void> {
    for (const { mirror } of domains) mirror.failAll();
    for (const { name } of domains) await waitState(scene.agent, name, 'exposed');
    await Promise.all(domains.map(({ name }) => goesOn(name)));
    for (const { mirror } of domains) mirror.heal();
    for (const { name } of domains) await waitState(scene.agent, name, 'protected');
  }

  it('of which one has a QEMU that is stopped and one has copies that hang: nineteen others fail over, or lose their mirrors and get them back', async () => {
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
      await Promise.all([allFailOver(healthy.failing), allLoseTheirMirrors(healthy.others)]);
      // Nobody has waited for these to get on: they have not.
      assert.match((await status(agent, hung.name)).disks[0]?.reason ?? '', /neither copy has answered since/);
      assert.deepEqual(await events(agent, stopped.name, 'held'), []);
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
    await store.freeze();
    try {
      strict.primary.failAll();
      await allFailOver(healthy.others);
      await waitFor(
        'the strict one to say what it waits for',
        async () => (await events(agent, strict.name, 'record-not-durable')).length > 0,
        patienceMs,
      );
      assert.match(await lab.virsh('domstate', strict.name), /^paused/);
      assert.deepEqual(await events(agent, strict.name, 'failed-over'), []);
      assert.notEqual((await status(agent, strict.name)).state, 'failed-over');
    } finally {
      await store.thaw();
    }
    await waitState(agent, strict.name, 'failed-over');
    await goesOn(strict.name);
    for (const { name } of healthy.others) {
      assert.ok((await events(agent, name, 'record-not-durable')).length > 0, name);
      const { uuid } = await status(agent, name);
      await waitFor(
        `the record of ${name}`,
        // A record that is being written has another name for a moment.
        () => store.holds(`domains/${uuid}.json`, '"state": *"failed-over"'),
        patienceMs,
      );
    }
  });
});
