import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import type { DiskStatus } from '../../src/protection/model.ts';
import type { Guest } from '../lab/guest.ts';
import { waitFor } from '../lab/wait.ts';
import { must } from '../lab/run.ts';
import { assertIdentical, assertNothingLost, goesOn } from './copies-hold.ts';
import { nodeNames, patienceMs, setScene, waitDisk, waitForLibvirt, waitState } from './scene.ts';

/**
 * The guest's witness writes to vda; vdb comes and goes. What a guest would write to vdb, QEMU's own qemu-io writes through the
 * device.
 */
describe('a disk that is plugged', function () {
  this.timeout(150_000);
  const scene = setScene({ config: { resync: { max_bytes_per_s: 24 << 20 } } });
  let guest: Guest;
  let vda: { primary: string; mirror: string };
  let vdb: { primary: string; mirror: string };

  async function disk(name: string): Promise<{ primary: string; mirror: string }> {
    const { file } = await scene.lab.image(`${name}.raw`);
    await must('dd', 'if=/dev/urandom', `of=${file}`, 'bs=1M', 'count=48', 'conv=notrunc');
    return { primary: file, mirror: (await scene.lab.image(`${name}-mirror.raw`)).file };
  }

  before(async function () {
    this.timeout(150_000);
    [vda, vdb] = [await disk('vda'), await disk('vdb')];
    guest = await scene.residentGuest({
      name: 'web1',
      cmdline: 'witness.rate=50 witness.disks=vda',
      disks: [
        { dev: 'vda', bus: 'virtio', image: { format: 'raw', file: vda.primary } },
        { dev: 'vdb', bus: 'virtio', image: { format: 'raw', file: vdb.primary } },
      ],
    });
    for (const [dev, { mirror }] of [['vda', vda] as const, ['vdb', vdb] as const])
      await scene.agent.mustCdp('protect', 'web1', '--disk', dev, '--mirror', mirror);
  });

  afterEach(async () => {
    assert.deepEqual(guest.witness.errors, []);
    await goesOn(guest, 5);
    await waitState(scene.agent, 'web1', 'protected', 'vda');
  });

  async function unplug(...options: string[]): Promise<void> {
    await scene.lab.virsh('detach-disk', 'web1', 'vdb', '--live', ...options);
  }

  async function plug(file: string, ...options: string[]): Promise<void> {
    const path = scene.lab.path('vdb.xml');
    writeFileSync(
      path,
      `<disk type='file' device='disk'><driver name='qemu' type='raw' cache='none' error_policy='stop' rerror_policy='stop'/>
         <source file='${file}'/><target dev='vdb' bus='virtio'/></disk>`,
    );
    await scene.lab.virsh('attach-device', 'web1', path, '--live', ...options);
  }

  let written = 0;
  async function write(): Promise<void> {
    const [device] = ((await guest.qmp('query-block')) as { qdev?: string }[]).filter(({ qdev }) =>
      qdev?.includes('virtio-disk1'),
    );
    assert.ok(device?.qdev !== undefined);
    written += 1;
    const command = `qemu-io -d ${device.qdev} "write -P ${written} ${written}M 256k"`;
    assert.equal(await guest.qmp('human-monitor-command', { 'command-line': command }), '');
  }

  /** QEMU holds nothing of vdb any more: somebody else can have both images. */
  async function assertClosed(): Promise<void> {
    const isLeft = (disk: DiskStatus): boolean => isUnplugged(disk) && !disk.mirror.current;
    const { runningOn } = await waitDisk(scene.agent, 'web1', 'unplugged', isLeft, 'vdb');
    assert.equal(runningOn, 'none');
    const ours = async (): Promise<string[]> => (await nodeNames(guest)).filter((name) => name.startsWith('cdp-vdb'));
    await waitFor(
      'QEMU to hold nothing of vdb',
      async () => (await ours()).length === 0,
      patienceMs,
      async () => (await ours()).join(),
    );
    for (const file of [vdb.primary, vdb.mirror]) await must('qemu-io', '-f', 'raw', '-c', 'read 0 512', file);
  }

  const isUnplugged = ({ state, reason }: { state: string; reason: string | null }): boolean =>
    state === 'waiting' && (reason ?? '').includes('not in the running domain');

  async function assertProtectedAgain(): Promise<void> {
    await write();
    await waitState(scene.agent, 'web1', 'protected', 'vdb');
    await write();
    await guest.suspend();
    await assertIdentical(vdb.primary, vdb.mirror);
    await assertIdentical(vda.primary, vda.mirror);
    await guest.resume();
  }

  it('out leaves nothing open, and is brought up to date by a full sync when it is plugged in again', async () => {
    await unplug('--config');
    await assertClosed();
    await plug(vdb.primary, '--config');
    await assertProtectedAgain();
  });

  it('out in mid-sync leaves nothing open either', async () => {
    await scene.agent.mustCdp('hold', 'web1');
    await waitState(scene.agent, 'web1', 'held', 'vdb');
    await scene.agent.mustCdp('release', 'web1');
    await waitState(scene.agent, 'web1', 'protected', 'vda');
    await scene.agent.cdp('resync', 'web1', '--disk', 'vdb', '--full', '--no-wait');
    await waitDisk(scene.agent, 'web1', 'in mid-sync', ({ job }) => job !== null, 'vdb');
    await unplug();
    await assertClosed();
    await plug(vdb.primary);
    await assertProtectedAgain();
  });

  it('out while the agent is down leaves nothing open when it is back', async () => {
    await scene.agent.kill('SIGKILL');
    await unplug();
    await scene.agent.start();
    await waitForLibvirt(scene.agent);
    await assertClosed();
    await plug(vdb.primary);
    await assertProtectedAgain();
  });

  it('in as another disk under the same name is no reason to overwrite the mirror', async () => {
    const other = await scene.lab.image('other.raw');
    await unplug();
    await assertClosed();
    await plug(other.file);
    await write();
    const isForeign = ({ reason }: { reason: string | null }): boolean => /an image that is not/.test(reason ?? '');
    const waiting = await waitDisk(scene.agent, 'web1', 'left alone', isForeign, 'vdb');
    assert.deepEqual([waiting.state, waiting.mirror.current], ['waiting', false]);
    await assertIdentical(vdb.primary, vdb.mirror);

    await unplug();
    await assertClosed();
    await plug(vdb.primary);
    await assertProtectedAgain();
  });

  it('out of a domain that is failed over, and in again as its stale copy, is not believed', async () => {
    const { agent } = scene;
    await agent.mustCdp('failover', 'web1', '--disk', 'vdb');
    await waitState(agent, 'web1', 'failed-over', 'vdb');
    await write();
    await unplug();
    await waitDisk(agent, 'web1', 'unplugged', isUnplugged, 'vdb');
    await plug(vdb.primary);
    const stale = await waitState(agent, 'web1', 'broken', 'vdb');
    assert.deepEqual([stale.primary.current, stale.mirror.current], [false, true]);
    assert.match(stale.reason ?? '', /stale/);

    await unplug();
    await waitDisk(agent, 'web1', 'unplugged', isUnplugged, 'vdb');
    await plug(vdb.mirror);
    const onMirror = await waitState(agent, 'web1', 'failed-over', 'vdb');
    assert.equal(onMirror.runningOn, 'mirror');
    await unplug();
    await waitDisk(agent, 'web1', 'unplugged', isUnplugged, 'vdb');
    await agent.mustCdp('unprotect', 'web1', '--disk', 'vdb', '--keep', 'mirror');

    await guest.suspend();
    await assertNothingLost(guest, [vda.primary, vda.mirror]);
    await guest.resume();
  });
});
