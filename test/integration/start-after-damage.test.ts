import assert from 'node:assert/strict';
import { readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { stringify, parse } from 'smol-toml';
import type { Guest } from '../lab/guest.ts';
import { waitFor } from '../lab/wait.ts';
import { assertNothingLost, goesOn } from './copies-hold.ts';
import { events, patienceMs, setScene, sourceOf, status, waitDisk, waitForLibvirt, waitState } from './scene.ts';

describe('a start that libvirt can not make', function () {
  this.timeout(150_000);
  const scene = setScene({ config: { mirror: { timeout_ms: 1000 } } });

  before(async () => {
    const { lab, agent } = scene;
    await agent.installHook();
    lab.libvirtd.reload();
  });

  async function stoppedGuest(name: string, image: Guest['disks'][0]['image'], ...options: string[]) {
    const { lab, agent } = scene;
    const mirror = await lab.nbd({ name: `${name}-mirror` });
    const guest = await scene.guest({
      name,
      cmdline: 'witness.rate=200',
      disks: [{ dev: 'vda', bus: 'virtio', image }],
    });
    await agent.mustCdp('protect', name, '--disk', 'vda', '--mirror', mirror.uri, ...options);
    await goesOn(guest, 20);
    await guest.shutdown();
    await waitState(agent, name, 'stopped');
    return { guest, mirror };
  }

  /** virsh start, which must fail. */
  async function failToStart({ name }: Guest): Promise<string> {
    const { code, stderr } = await scene.lab.libvirtd.virsh('start', name);
    assert.notEqual(code, 0);
    return stderr;
  }

  async function refusal({ name }: Guest): Promise<string> {
    const [refused] = await waitFor(
      `${name}'s start to be refused`,
      async () => {
        const found = await events(scene.agent, name, 'start-refused');
        return found.length > 0 ? found : undefined;
      },
      patienceMs,
    );
    return String(refused?.detail['reason']);
  }

  async function runsOnMirror(guest: Guest, mirror: { uri: string; file: string }, boots: number): Promise<void> {
    await guest.witness.waitReady(patienceMs, boots + 1);
    assert.equal((await waitState(scene.agent, guest.name, 'failed-over')).runningOn, 'mirror');
    assert.equal(await sourceOf(guest, 'next start'), mirror.uri);
    await goesOn(guest, 20);
    await guest.shutdown();
    await assertNothingLost(guest, [mirror.file]);
  }

  /** The record on disk takes the last start into account that the hook has marked. */
  async function forgotten(guest: Guest): Promise<void> {
    const { storeDir } = scene.agent;
    const { uuid } = await status(scene.agent, guest.name);
    await waitFor(
      'the failed start to be known as none',
      () => {
        const record = JSON.parse(readFileSync(join(storeDir, 'domains', `${uuid}.json`), 'utf8')) as {
          lastStart: string | null;
        };
        return record.lastStart === readFileSync(join(storeDir, 'starts', uuid), 'utf8').trim();
      },
      patienceMs,
    );
  }

  function withoutPrimary(path: string): void {
    renameSync(path, `${path}.gone`);
  }

  it('for want of its primary is made from the mirror; one that fails for another reason changes nothing', async () => {
    const { lab, agent } = scene;
    const image = await lab.image('d1.raw');
    const { guest, mirror } = await stoppedGuest('d1', image);

    const other = join(lab.libvirtd.hooksDir, 'qemu.d/90-other');
    writeFileSync(other, '#!/bin/sh\ncat >/dev/null\n[ "$2" != start ]\n', { mode: 0o755 });
    assert.match(await failToStart(guest), /Hook script execution failed/);
    await forgotten(guest);
    rmSync(other);
    await agent.restart('SIGKILL');
    await waitForLibvirt(agent);
    const { primary, mirror: copy } = (await status(agent, 'd1')).disks[0]!;
    assert.deepEqual([primary.current, copy.current], [true, true]);
    assert.deepEqual(await events(agent, 'd1', 'start-refused'), []);

    withoutPrimary(image.file);
    const boots = guest.witness.boots;
    assert.match(await failToStart(guest), /No such file/);
    await runsOnMirror(guest, mirror, boots);
    assert.ok((await refusal(guest)).includes(image.file));
    const [last] = (await events(agent, 'd1', 'started')).slice(-1);
    assert.deepEqual(last?.detail, { onMirror: ['vda'] });
  });

  it('at the start of the host is made from the mirror, too', async () => {
    const { lab } = scene;
    const image = await lab.image('d2.raw');
    const { guest, mirror } = await stoppedGuest('d2', image);
    await lab.virsh('autostart', 'd2');
    withoutPrimary(image.file);
    const boots = guest.witness.boots;
    // libvirt does it once a boot of the host (virDriverShouldAutostart in src/driver.c).
    rmSync(join(lab.root, 'run/qemu/autostarted'));
    await lab.libvirtd.restart();
    await runsOnMirror(guest, mirror, boots);
  });

  it('because somebody ended it while its primary hung is let be; with after_damage = "refuse" all are', async () => {
    const { lab, agent } = scene;
    const primary = await lab.nbd({ name: 'd3-primary' });
    const { guest, mirror } = await stoppedGuest('d3', { format: 'raw', nbd: primary.address });
    primary.hang();
    const started = failToStart(guest);
    await guest.waitState('paused (starting up)', patienceMs);
    await lab.virsh('destroy', 'd3');
    await started;
    await waitDisk(agent, 'd3', 'known to hang', (disk) => disk.primary.reachable === false);

    const config = parse(readFileSync(agent.configPath, 'utf8'));
    writeFileSync(agent.configPath, stringify({ ...config, start: { after_damage: 'refuse' } }));
    await waitFor(
      'the configuration to be read',
      () => readFileSync(agent.logPath, 'utf8').includes('configuration reloaded'),
      patienceMs,
    );
    assert.match(await guest.state(), /^shut off/);
    assert.deepEqual(await events(agent, 'd3', 'start-refused'), []);
    await primary.kill();
    await failToStart(guest);
    assert.match(await refusal(guest), /d3-primary.*virt-cdp start d3/);
    const { reason } = await waitDisk(agent, 'd3', 'explained', (disk) => disk.reason !== null);
    assert.match(reason ?? '', /d3-primary/);
    assert.match(await guest.state(), /^shut off/);
    const boots = guest.witness.boots;
    await agent.mustCdp('start', 'd3');
    await runsOnMirror(guest, mirror, boots);
    writeFileSync(agent.configPath, stringify(config));
  });

  it('is not made from one copy where the policy is strict', async () => {
    const image = await scene.lab.image('d4.raw');
    const { guest } = await stoppedGuest('d4', image, '--policy', 'strict');
    withoutPrimary(image.file);
    await failToStart(guest);
    assert.match(await refusal(guest), /strict.*virt-cdp start d4/);
    assert.match(await guest.state(), /^shut off/);
  });
});
