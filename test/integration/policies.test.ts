import assert from 'node:assert/strict';
import { mkdirSync, readdirSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { AgentClient } from '../../src/control/client.ts';
import { parseDomain, hasStopPolicy } from '../../src/domain/domain.ts';
import type { PolicyReport } from '../../src/control/api.ts';
import type { Guest } from '../lab/guest.ts';
import { recordSize } from '../lab/record.ts';
import { waitFor } from '../lab/wait.ts';
import { assertIdentical, assertNothingLost, endWell, goesOn, writeBlock } from './copies-hold.ts';
import { events, patienceMs, setScene, status, waitDisk, waitState } from './scene.ts';

describe('policy files', function () {
  this.timeout(150_000);
  const scene = setScene();
  let folder: string;
  let mirrors: string;

  before(() => {
    folder = join(dirname(scene.agent.configPath), 'policy.d');
    mirrors = scene.lab.path('mirrors');
    mkdirSync(folder);
    mkdirSync(mirrors);
  });
  afterEach(() => {
    for (const name of readdirSync(folder)) rmSync(join(folder, name));
  });

  /** In one go, as an editor does; returns when the agent has read it. */
  async function put(name: string, ...lines: string[]): Promise<void> {
    writeFileSync(join(folder, '.new'), lines.map((line) => `${line}\n`).join(''));
    const before = await timesRead(name);
    renameSync(join(folder, '.new'), join(folder, name));
    await waitFor(`${name} to be read`, async () => (await timesRead(name)) > before, patienceMs);
  }

  async function remove(name: string): Promise<void> {
    rmSync(join(folder, name));
    await waitFor(
      `${name} to be missed`,
      async () => (await report()).files.every(({ file }) => !file.endsWith(name)),
      patienceMs,
    );
  }

  async function timesRead(name: string): Promise<number> {
    const lines = (await readFile(scene.agent.logPath, 'utf8')).split('\n');
    return lines.filter((line) => line.includes('"policy files read"') && line.includes(name)).length;
  }

  const toFiles = (pattern: string): string[] => [
    `domains = ["${pattern}"]`,
    `mirror = "${mirrors}/{domain}-{dev}.raw"`,
    'create = true',
  ];
  const mirrorOf = (domain: string): string => join(mirrors, `${domain}-vda.raw`);

  async function defined(name: string, { file, stopPolicy = true }: { file?: string; stopPolicy?: boolean } = {}) {
    const image = file === undefined ? await scene.lab.image(`${name}.raw`) : { format: 'raw' as const, file };
    const guest = await scene.guest({
      name,
      start: false,
      cmdline: 'witness.rate=200 witness.blocks=15000',
      disks: [{ dev: 'vda', bus: 'virtio', image, stopPolicy }],
    });
    return { guest, image };
  }

  async function declared(name: string): Promise<void> {
    await waitFor(`${name} to be declared`, () => status(scene.agent, name).catch(() => undefined), patienceMs);
  }

  async function report(): Promise<PolicyReport> {
    return new AgentClient({ socketPath: scene.agent.socket }).policies();
  }

  async function refusal(name: string): Promise<string> {
    const [refused] = await waitFor(
      `${name} to be refused`,
      async () => {
        const found = (await report()).refusals.filter(({ domain }) => domain === name);
        return found.length > 0 ? found : undefined;
      },
      patienceMs,
    );
    return refused!.why;
  }

  it('protect a domain that fits: from its definition on it has the stop policy and a mirror', async () => {
    await put('10-files.toml', ...toFiles('p?'));
    const { guest, image } = await defined('p1', { stopPolicy: false });
    await defined('p11');
    await declared('p1');
    const { disks } = parseDomain(await guest.xml('--inactive'));
    assert.ok(disks.every(hasStopPolicy));
    assert.equal((await status(scene.agent, 'p1')).disks[0]?.mirror.source, mirrorOf('p1'));
    await guest.start();
    await waitState(scene.agent, 'p1', 'protected');
    await goesOn(guest, 30);
    await endWell(guest, [image.file, mirrorOf('p1')]);
    await assert.rejects(status(scene.agent, 'p11'), /not protected/);
  });

  it('that come while a domain runs protect it, without a restart; what a domain declares itself goes before', async () => {
    const { agent, lab } = scene;
    const { guest, image } = await defined('r1');
    const { guest: own } = await defined('r2');
    const byHand = await lab.nbd({ name: 'r2-mirror' });
    await agent.mustCdp('protect', 'r2', '--disk', 'vda', '--mirror', byHand.uri);
    await guest.start();
    await put('10-files.toml', ...toFiles('r*'));
    await declared('r1');
    await waitState(agent, 'r1', 'protected');
    await goesOn(guest, 30);
    await endWell(guest, [image.file, mirrorOf('r1')]);
    assert.equal((await status(agent, own.name)).disks[0]?.mirror.source, byHand.uri);
  });

  it('protect transient domains at each start, from whatever their disks hold then', async () => {
    const { agent, lab } = scene;
    await put('10-files.toml', ...toFiles('t*'));
    const image = await lab.image('t1.raw');
    // Of another name, so that it is not defined before it is created.
    const { guest: model } = await defined('model', { file: image.file });
    const xml = (await model.xml('--inactive')).replace('<name>model<', '<name>t1<').replace(/<uuid>.*<\/uuid>/, '');
    const path = join(lab.root, 't1.xml');
    const create = async (): Promise<void> => {
      const boots = model.witness.boots;
      writeFileSync(path, xml);
      await lab.virsh('create', path);
      await model.witness.waitReady(patienceMs, boots + 1);
    };
    const records = (): string[] => readdirSync(join(agent.storeDir, 'domains'));
    const others = records();

    await create();
    await declared('t1');
    await waitState(agent, 't1', 'protected');
    const { uuid } = await status(agent, 't1');
    await goesOn(model, 30);
    await lab.virsh('destroy', 't1');
    await waitState(agent, 't1', 'stopped');
    // As a run that the agent does not see would.
    await writeBlock(image.file, 15_500, Buffer.alloc(recordSize, 'elsewhere'));

    await create();
    await waitDisk(agent, 't1', 'protected', ({ state }) => state === 'protected');
    const again = await status(agent, 't1');
    assert.notEqual(again.uuid, uuid);
    assert.deepEqual(
      records().filter((record) => !others.includes(record)),
      [`${again.uuid}.json`],
    );
    await goesOn(model, 30);
    await lab.virsh('shutdown', 't1');
    await model.witness.waitStopped(patienceMs);
    await waitState(agent, 't1', 'stopped');
    await assertNothingLost(model, [image.file, mirrorOf('t1')]);
    await assertIdentical(image.file, mirrorOf('t1'));

    writeFileSync(path, xml.replaceAll(/ r?error_policy='stop'/g, ''));
    await lab.virsh('create', path);
    await waitDisk(agent, 't1', 'told what its definition lacks', ({ state, reason }) => {
      return state === 'protected' && /error_policy='stop'.*It is transient/.test(reason ?? '');
    });
    await lab.virsh('destroy', 't1');
  });

  it("do not take a mirror that is another disk's, or that holds data; both are told, and tried again", async () => {
    const { agent, lab } = scene;
    await put('10-one.toml', 'domains = ["one*"]', `mirror = "${mirrors}/one.raw"`, 'create = true');
    const { guest: first } = await defined('one1');
    const { guest: second } = await defined('one2');
    await waitFor('one of two to be refused', async () => (await report()).refusals.length === 1, patienceMs);
    const [{ domain, why } = { domain: '', why: '' }] = (await report()).refusals;
    assert.ok([first.name, second.name].includes(domain));
    assert.match(why, /in use/);
    assert.match(String((await events(agent, domain, 'protect-refused'))[0]?.detail['why']), /in use/);
    assert.match((await agent.cdp('status')).stderr, new RegExp(`${domain}'s vda is not protected.*in use`));

    const full = await lab.nbd({ name: 'full-mirror' });
    await writeBlock(full.file, 3, Buffer.alloc(recordSize, 'precious'));
    const precious = await readFile(full.file);
    await put('20-full.toml', 'domains = ["full*"]', `mirror = "${full.uri}"`);
    const { guest } = await defined('full1');
    assert.match(await refusal('full1'), /holds data/);
    assert.ok(precious.equals(await readFile(full.file)));
    await writeBlock(full.file, 3, Buffer.alloc(recordSize));
    // Any sign of life of the domain has it tried at once.
    await lab.virsh('define', await xmlFile(guest));
    await declared('full1');
    assert.deepEqual(
      (await report()).refusals.filter((one) => one.domain === 'full1'),
      [],
    );
  });

  async function xmlFile(guest: Guest): Promise<string> {
    const path = join(scene.lab.root, `${guest.name}-again.xml`);
    writeFileSync(path, await guest.xml('--inactive'));
    return path;
  }

  it('that break, change or go away change nothing for what is protected; what they protect stays so', async () => {
    const { agent } = scene;
    await put('10-files.toml', ...toFiles('k*'));
    await defined('k1');
    await declared('k1');
    assert.match((await agent.cdp('unprotect', 'k1')).stderr, /10-files\.toml/);

    await put('10-files.toml', 'domains = ["k*"]', 'mirorr = "nbd://elsewhere/{domain}"');
    await defined('k2');
    await declared('k2');
    const told = await agent.cdp('status', '--json');
    assert.match(told.stderr, /10-files\.toml[^]*mirorr/);
    assert.ok(Array.isArray(JSON.parse(told.stdout)));
    assert.match((await report()).files[0]?.problem ?? '', /mirorr/);

    await remove('10-files.toml');
    assert.equal((await status(agent, 'k1')).disks.length, 1);
    await put('00-without.toml', 'domains = ["k2"]', 'disks = []');
    await put('10-files.toml', ...toFiles('k*'));
    await agent.mustCdp('unprotect', 'k2');
    await assert.rejects(status(agent, 'k2'), /not protected/);
  });
});
