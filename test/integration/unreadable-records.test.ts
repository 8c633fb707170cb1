import assert from 'node:assert/strict';
import { readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Finding } from '../../src/doctor/finding.ts';
import type { DomainStatus } from '../../src/protection/model.ts';
import type { Guest } from '../lab/guest.ts';
import type { NbdServer } from '../lab/storage.ts';
import { assertNothingLost, goesOn } from './copies-hold.ts';
import { events, patienceMs, roots, setScene, sourceOf, status, waitForLibvirt, waitState } from './scene.ts';

const sizeBytes = 16 << 20;

describe('a record that can not be read', function () {
  this.timeout(120_000);
  const scene = setScene();

  interface Protected {
    guest: Guest;
    primary: NbdServer;
    mirror: NbdServer;
    record: string;
  }

  async function protectedDomain(name: string, start = true): Promise<Protected> {
    const primary = await scene.lab.nbd({ name: `${name}-primary`, sizeBytes });
    const mirror = await scene.lab.nbd({ name: `${name}-mirror`, sizeBytes });
    const image = { format: 'raw' as const, nbd: primary.address };
    const cmdline = 'witness.rate=50';
    const guest = await scene.guest({ name, start, cmdline, disks: [{ dev: 'vda', bus: 'virtio', image }] });
    await scene.agent.mustCdp('protect', name, '--disk', 'vda', '--mirror', mirror.uri);
    const { uuid } = await status(scene.agent, name);
    return { guest, primary, mirror, record: join(scene.agent.storeDir, 'domains', `${uuid}.json`) };
  }

  before(async () => {
    await scene.agent.installHook();
    scene.lab.libvirtd.reload();
  });

  it('leaves its domain alone, refuses its start, says what to do, and keeps no other from being protected', async () => {
    const { lab, agent } = scene;
    const [web1, web2, web3] = await Promise.all([
      protectedDomain('web1'),
      protectedDomain('web2'),
      protectedDomain('web3', false),
    ]);
    const mine = await status(agent, 'web2');
    const whole = readFileSync(web2.record);
    const stopped = readFileSync(web3.record);

    await agent.kill('SIGTERM');
    truncateSync(web2.record, 100);
    writeFileSync(web3.record, stopped.toString().replace('"version": 1', '"version": 2'));
    const newer = readFileSync(web3.record);
    await agent.start();
    await waitForLibvirt(agent);

    web1.primary.failAll();
    await waitState(agent, 'web1', 'failed-over');
    await goesOn(web1.guest);
    await assertNothingLost(web1.guest, [web1.mirror.file]);

    const listed = JSON.parse(await agent.mustCdp('list', '--json')) as DomainStatus[];
    assert.deepEqual(
      listed.map(({ domain, state, running }) => [domain, state, running]),
      [
        ['web1', 'failed-over', true],
        ['web2', 'broken', true],
        ['web3', 'broken', false],
      ],
    );
    assert.match(listed[1]?.problem ?? '', new RegExp(`${mine.uuid}.json can't be read: .*restore it from a backup`));
    const told = await agent.cdp('status', 'web3');
    assert.match(told.stdout, /it is of version 2, and this virt-cdp reads version 1.*systemctl restart virt-cdpd/s);
    assert.equal((await agent.cdp('status', 'web3', '--check')).code, 11);
    assert.equal((await events(agent, 'web2', 'record-unreadable')).length, 1);
    const findings = JSON.parse(
      (await agent.cdp('doctor', '--json', '--config', agent.configPath)).stdout,
    ) as Finding[];
    assert.equal(findings.filter(({ check, severity }) => check === 'store' && severity === 'error').length >= 2, true);

    const refused = await lab.libvirtd.virsh('start', 'web3');
    assert.match(refused.stderr, /web3 can't start: which of its copies is current is not known: .*version 2/);
    for (const request of [['hold'], ['unprotect'], ['protect', '--disk', 'vda', '--mirror', web3.mirror.uri]]) {
      const [command = '', ...args] = request;
      const { code, stderr } = await agent.cdp(command, 'web3', ...args);
      assert.deepEqual([code, /can't be read/.test(stderr)], [1, true], `${command}: ${stderr}`);
    }
    await goesOn(web2.guest);
    assert.deepEqual(await roots(web2.guest), ['cdp-vda']);
    assert.deepEqual([readFileSync(web2.record).length, readFileSync(web3.record)], [100, newer]);

    // Nobody but the list of stale copies knows any more that another domain must not start from it.
    await web1.guest.destroy();
    await waitState(agent, 'web1', 'stopped');
    assert.equal(await sourceOf(web1.guest, 'next start'), web1.mirror.uri);
    const former = readFileSync(join(agent.storeDir, 'domains', `${(await status(agent, 'web1')).uuid}.json`));
    await agent.kill('SIGTERM');
    writeFileSync(join(agent.storeDir, 'domains', `${mine.uuid}.json`), former);
    writeFileSync(web1.record, '');
    writeFileSync(web3.record, stopped);
    await agent.start();
    await waitForLibvirt(agent);
    assert.match((await agent.cdp('status', 'web2')).stdout, /it is the record of another domain/);
    const image = { format: 'raw' as const, nbd: web1.primary.address };
    await scene.guest({ name: 'web4', start: false, disks: [{ dev: 'vda', bus: 'virtio', image }] });
    const stranger = await lab.libvirtd.virsh('start', 'web4');
    assert.match(stranger.stderr, /'web1-primary' was a stale copy/);

    await agent.kill('SIGTERM');
    writeFileSync(web2.record, whole);
    await agent.start();
    await waitForLibvirt(agent);
    await waitState(agent, 'web2', 'protected');
    assert.equal((await events(agent, 'web2', 'resync-finished')).length, 1, 'it was copied again');
    await lab.virsh('start', 'web3', '--paused');
    await goesOn(web2.guest);
    await web2.guest.waitState('running', patienceMs);
    await assertNothingLost(web2.guest, [web2.primary.file, web2.mirror.file]);
  });
});
