import assert from 'node:assert/strict';
import { existsSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseDomain } from '../../src/domain/domain.ts';
import type { EventName } from '../../src/protection/model.ts';
import type { Guest } from '../lab/guest.ts';
import { waitFor } from '../lab/wait.ts';
import { assertNothingLost, goesOn } from './copies-hold.ts';
import { events, patienceMs, roots, setScene, sourceOf, status, waitDisk, waitState } from './scene.ts';

describe('behind our back, in the configuration,', function () {
  this.timeout(150_000);
  const scene = setScene();

  /** A running, protected guest with its disk and mirror in files, each `name` of its own. */
  async function protectedGuest(name: string): Promise<{ guest: Guest; primary: string; mirror: string }> {
    const { lab, agent } = scene;
    const image = await lab.image(`${name}.raw`);
    const mirror = lab.path(`${name}-mirror.raw`);
    const guest = await scene.guest({
      name,
      cmdline: 'witness.blocks=2000 witness.rate=50',
      disks: [{ dev: 'vda', bus: 'virtio', image }],
    });
    await agent.mustCdp('protect', name, '--disk', 'vda', '--mirror', mirror, '--create');
    await goesOn(guest, 20);
    return { guest, primary: image.file, mirror };
  }

  async function define(guest: { name: string }, xml: string): Promise<void> {
    const path = join(scene.lab.root, `${guest.name}-defined.xml`);
    writeFileSync(path, xml);
    await scene.lab.virsh('define', path);
  }

  async function definition(name: string): Promise<string> {
    return scene.lab.virsh('dumpxml', name, '--inactive', '--security-info');
  }

  /** Waits for the definition to be as it should be. */
  async function waitDefinition(name: string, what: string, fits: (xml: string) => boolean): Promise<void> {
    let last = '';
    await waitFor(
      `the definition of ${name} to have ${what}`,
      async () => fits((last = await definition(name))),
      patienceMs,
      () => last,
    );
  }

  async function waitEvent(domain: string, event: EventName, count = 1): Promise<void> {
    await waitFor(
      `${count} times ${event}`,
      async () => (await events(scene.agent, domain, event)).length >= count,
      patienceMs,
    );
  }

  const undeclared = (xml: string): string =>
    xml.replace(/<metadata>[\s\S]*<\/metadata>/, '').replace(/ r?error_policy=["']stop["']/g, '');

  const declares = (xml: string): boolean => {
    const { declaration, disks } = parseDomain(xml);
    return declaration?.disks[0]?.dev === disks[0]?.dev && disks[0]?.errorPolicy === 'stop';
  };

  it('a domain that is defined without its declaration stays protected, and gets it back', async () => {
    const { agent } = scene;
    const { guest, mirror, primary } = await protectedGuest('web1');
    const good = await definition('web1');

    await define(guest, undeclared(good));
    await waitDefinition('web1', 'its declaration and stop policy again', declares);
    await waitEvent('web1', 'definition-restored');
    assert.equal((await waitState(agent, 'web1', 'protected')).reason, null);

    await define(guest, good.replace(/<cdp:mirror>/, '<cdp:mirrow/><cdp:mirror>'));
    const broken = await waitDisk(agent, 'web1', 'told of', ({ reason }) => reason?.includes('mirrow') === true);
    assert.equal(broken.state, 'protected');
    assert.ok((await definition('web1')).includes('mirrow'), 'what the administrator was about to write is left alone');

    await define(
      guest,
      good
        .replaceAll(mirror, '/elsewhere/mirror.raw')
        .replace('policy="available"', "policy='strict'")
        .replace("policy='available'", "policy='strict'"),
    );
    const other = await waitDisk(agent, 'web1', 'told of', ({ reason }) => reason?.includes('/elsewhere') === true);
    assert.deepEqual([other.state, other.mirror.source], ['protected', mirror]);
    assert.equal((await status(agent, 'web1')).policy, 'strict');

    await define(guest, good.replaceAll(primary, '/elsewhere/disk.raw'));
    await waitDisk(agent, 'web1', 'told of', ({ reason }) => reason?.includes('/elsewhere/disk.raw') === true);
    assert.equal((await status(agent, 'web1')).policy, 'available');
    assert.equal(await sourceOf(guest, 'next start'), '/elsewhere/disk.raw', "the user's own choice is left alone");

    await define(guest, good.replaceAll(primary, mirror));
    await waitDefinition('web1', 'its primary as its source', (xml) => xml.includes(`'${primary}'`));
    await waitDisk(agent, 'web1', 'no longer told of', ({ reason, state }) => reason === null && state === 'protected');
    assert.deepEqual(await roots(guest), ['cdp-vda']);
    await goesOn(guest);

    // The definition follows a failover, and is put right again when somebody puts an old one back, running or not.
    await agent.mustCdp('failover', 'web1');
    await waitDefinition('web1', 'the mirror as its source', (xml) => xml.includes(`<source file='${mirror}'`));
    await define(guest, good);
    await waitDefinition('web1', 'the mirror as its source', (xml) => xml.includes(`<source file='${mirror}'`));
    await guest.shutdown();
    await waitState(agent, 'web1', 'stopped');
    await define(guest, undeclared(good));
    await waitDefinition(
      'web1',
      'the mirror as its source',
      (xml) => xml.includes(`<source file='${mirror}'`) && declares(xml),
    );
    await assertNothingLost(guest, [mirror]);
  });

  it('a domain that is renamed, and whose disk is renamed, keeps its record; undefined, it can be forgotten', async () => {
    const { agent, lab } = scene;
    const { guest, mirror, primary } = await protectedGuest('web2');
    const { uuid } = await status(agent, 'web2');
    await guest.shutdown();
    await waitState(agent, 'web2', 'stopped');
    await lab.virsh('domrename', 'web2', 'web2-new');
    await waitEvent('web2-new', 'renamed');
    assert.deepEqual([(await status(agent, 'web2-new')).uuid], [uuid]);
    assert.equal((await agent.cdp('status', 'web2')).code, 1);

    const xml = await definition('web2-new');
    await define({ name: 'web2-new' }, xml.replace("dev='vda' bus", "dev='vdb' bus"));
    await waitDisk(agent, 'web2-new', 'called vdb', ({ dev, reason }) => dev === 'vdb' && reason === null);
    await waitDefinition('web2-new', 'a declaration of vdb', declares);
    assert.equal((await events(agent, 'web2-new', 'mirror-contested')).length, 0);
    await lab.virsh('start', 'web2-new');
    await waitState(agent, 'web2-new', 'protected', 'vdb');

    // Undefined while it runs it becomes transient, and goes on protected; when it ends it is gone.
    await lab.virsh('undefine', 'web2-new');
    await lab.virsh('destroy', 'web2-new');
    await waitEvent('web2-new', 'gone');
    const gone = await waitState(agent, 'web2-new', 'stopped');
    assert.match(gone.reason ?? '', /unprotect/);

    // Its copies stay in use until it is forgotten, whoever is defined under its name.
    const heir = '11111111-2222-4333-8444-555555555555';
    await define({ name: 'web2-new' }, xml.replace(uuid, heir));
    await waitEvent('web2-new', 'mirror-contested');
    const [contested] = (await status(agent, heir)).disks;
    assert.equal(contested?.state, 'stopped');
    assert.ok(contested.reason?.includes(`virt-cdp unprotect ${uuid}`), contested.reason ?? '');
    await agent.restart();
    const refused = await waitFor(
      'the restarted agent to look',
      async () => ((await events(agent, 'web2-new', 'gone')).length > 1 ? status(agent, 'web2-new') : null),
      patienceMs,
    );
    assert.equal(refused.uuid, heir, 'the name is that of the one that is there');
    await agent.mustCdp('unprotect', uuid);
    await waitDisk(agent, 'web2-new', 'its own mirror', ({ reason }) => reason === null);
    await lab.virsh('undefine', 'web2-new');
    await waitEvent('web2-new', 'gone', 3);
    await agent.mustCdp('unprotect', 'web2-new');
    await assertNothingLost(guest, [primary, mirror]);
  });

  it('a primary whose file is deleted or replaced is left for the mirror; without one the guest runs on, and all are told', async () => {
    const { agent, lab } = scene;
    const image = await lab.image('web3.raw');
    const mirror = await lab.nbd({ name: 'web3-mirror' });
    const guest = await scene.guest({
      name: 'web3',
      cmdline: 'witness.blocks=2000 witness.rate=50',
      disks: [{ dev: 'vda', bus: 'virtio', image }],
    });
    await agent.mustCdp('protect', 'web3', '--disk', 'vda', '--mirror', mirror.uri);
    await waitState(agent, 'web3', 'protected');
    renameSync(image.file, `${image.file}.away`);
    renameSync(`${image.file}.away`, image.file);
    await goesOn(guest, 60);
    assert.equal((await status(agent, 'web3')).state, 'protected', 'moved away and back is not gone');

    rmSync(image.file);
    await waitState(agent, 'web3', 'failed-over');
    await goesOn(guest);
    await waitFor('the stand-in to be gone', () => !existsSync(image.file), patienceMs);

    const second = lab.path('web3-second.raw');
    await agent.mustCdp('rebuild', 'web3', '--to', second);
    await waitState(agent, 'web3', 'protected');
    await goesOn(guest, 60);
    assert.equal((await events(agent, 'web3', 'primary-lost')).length, 1, 'a move of our own is no loss');
    await agent.kill('SIGKILL');
    renameSync((await lab.image('web3-other.raw')).file, second);
    await agent.start();
    await waitState(agent, 'web3', 'failed-over');
    await goesOn(guest);

    const third = lab.path('web3-third.raw');
    await agent.mustCdp('rebuild', 'web3', '--to', third);
    await waitState(agent, 'web3', 'protected');
    await mirror.kill();
    await waitState(agent, 'web3', 'exposed');
    renameSync(third, `${third}.away`);
    const gone = await waitDisk(
      agent,
      'web3',
      'without its file',
      ({ reason }) => reason?.includes(`'${third}' was deleted`) === true,
    );
    assert.equal(gone.runningOn, 'primary');
    await mirror.restart();
    await goesOn(guest, 60);
    renameSync(`${third}.away`, third);
    await waitState(agent, 'web3', 'protected');
    await guest.shutdown();
    await assertNothingLost(guest, [third, mirror.file]);
  });
});
