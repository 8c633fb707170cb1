import assert from 'node:assert/strict';
import { statSync } from 'node:fs';
import type { Agent } from '../lab/agent.ts';
import type { Guest } from '../lab/guest.ts';
import { must } from '../lab/run.ts';
import type { NbdServer } from '../lab/storage.ts';
import { waitFor } from '../lab/wait.ts';
import { assertNothingLost, goesOn } from './copies-hold.ts';
import { patienceMs, setScene, status, waitDisk, waitForLibvirt, waitState } from './scene.ts';

/** Whatever its limit, a job of QEMU's has 16 MiB under way at once (block/mirror.c: MAX_IO_BYTES, MAX_IN_FLIGHT). */
const diskBytes = 48 << 20;

/** The whole host, or its QEMU alone, ends in the middle of a rebuild; the guest writes until then. */
describe('killed in mid-rebuild', function () {
  this.timeout(120_000);
  // Copying takes some seconds.
  const scene = setScene({ config: { resync: { max_bytes_per_s: 8 << 20 } } });
  let agent: Agent;
  let guest: Guest;
  let mirror: NbdServer;

  before(async function () {
    this.timeout(120_000);
    const { lab } = scene;
    agent = scene.agent;
    await agent.installHook();
    lab.libvirtd.reload();
    mirror = await lab.nbd({ name: 'web1-mirror', sizeBytes: diskBytes });
    const file = lab.path('web1.raw');
    await must('dd', 'if=/dev/urandom', `of=${file}`, 'bs=1M', 'count=48');
    guest = await scene.residentGuest({
      name: 'web1',
      cmdline: 'witness.blocks=1000 witness.depth=4 witness.rate=100',
      disks: [{ dev: 'vda', bus: 'virtio', image: { format: 'raw', file } }],
    });
    await agent.mustCdp('protect', 'web1', '--disk', 'vda', '--mirror', mirror.uri);
  });

  /** Moves the guest onto its mirror, and begins a rebuild onto a new file, with an agent that dies after this step, if any. */
  async function rebuildTo(path: string, lastStep: string | null): Promise<string> {
    const { primary } = await waitState(agent, 'web1', 'protected');
    await agent.mustCdp('failover', 'web1');
    await goesOn(guest, 10);
    if (lastStep !== null) {
      await agent.kill('SIGTERM');
      agent = await scene.lab.agent({
        config: { resync: { max_bytes_per_s: 8 << 20 } },
        env: { VIRT_CDP_TEST_DIE_AFTER_STEPS: lastStep },
      });
      await waitForLibvirt(agent);
    }
    await agent.mustCdp('rebuild', 'web1', '--to', path, '--no-wait');
    return primary.source;
  }

  async function copying(path: string): Promise<void> {
    await waitDisk(agent, 'web1', 'in mid-copy', ({ job }) => job !== null && job.done > diskBytes / 4);
    assert.ok(statSync(path).blocks > 0);
    await goesOn(guest, 10);
  }

  async function agentDead(): Promise<void> {
    const dead = (): boolean => {
      try {
        return !process.kill(agent.pid, 0);
      } catch {
        return true;
      }
    };
    await waitFor('the agent to die', dead, patienceMs, async () => JSON.stringify(await status(agent, 'web1')));
  }

  async function newAgent(): Promise<void> {
    agent = await scene.lab.agent({ config: { resync: { max_bytes_per_s: 8 << 20 } } });
    await waitForLibvirt(agent);
  }

  /** libvirt must not start a domain on this image, whoever names it. */
  async function assertRefused(file: string): Promise<void> {
    const { lab } = scene;
    const image = { format: 'raw' as const, file };
    await scene.guest({ name: 'thief', start: false, disks: [{ dev: 'vda', bus: 'virtio', image }] });
    const { code, stderr } = await lab.libvirtd.virsh('start', 'thief');
    assert.deepEqual([code, /is a stale copy of web1's vda/.test(stderr)], [1, true], stderr);
    await lab.virsh('undefine', 'thief');
  }

  /** What may be started lacks nothing, the rest is refused, and the domain is protected again by what is started. */
  async function comesBack(stale: string[]): Promise<void> {
    const { primary, mirror: kept } = await waitState(agent, 'web1', 'stopped');
    const current = [...(primary.current ? [primary.source] : []), ...(kept.current ? [mirror.file] : [])];
    assert.notDeepEqual(current, []);
    await assertNothingLost(guest, current);
    for (const file of stale) {
      assert.equal(current.includes(file), false);
      await assertRefused(file);
    }
    const boots = guest.witness.boots;
    await agent.mustCdp('start', 'web1');
    await guest.witness.waitReady(patienceMs, boots + 1);
    const now = await waitState(agent, 'web1', 'protected');
    await goesOn(guest, 10);
    await guest.suspend();
    await assertNothingLost(guest, [now.primary.source, mirror.file]);
    await guest.resume();
  }

  it('QEMU alone while it copies: the mirror has everything, and the rebuild is begun again', async () => {
    const path = scene.lab.path('copying.raw');
    const old = await rebuildTo(path, null);
    await copying(path);
    process.kill(guest.qemuPid, 'SIGKILL');
    await comesBack([old, path]);
  });

  it('the host between the pivot and its record: the mirror has everything, and is what starts', async () => {
    const path = scene.lab.path('pivot.raw');
    const old = await rebuildTo(path, 'pivot');
    await agentDead();
    process.kill(guest.qemuPid, 'SIGKILL');
    await newAgent();
    await comesBack([old, path]);
  });

  it('the host while it copies, and when both copies have just been recorded: neither lacks anything', async () => {
    const path = scene.lab.path('host.raw');
    const old = await rebuildTo(path, null);
    await copying(path);
    const pid = guest.qemuPid;
    process.kill(agent.pid, 'SIGKILL');
    process.kill(pid, 'SIGKILL');
    await agent.kill('SIGKILL');
    await newAgent();
    await comesBack([old, path]);

    const next = scene.lab.path('recorded.raw');
    await rebuildTo(next, 'defineSource');
    await agentDead();
    process.kill(guest.qemuPid, 'SIGKILL');
    await newAgent();
    await comesBack([path]);
  });
});
