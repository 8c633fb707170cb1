import assert from 'node:assert/strict';
import { truncate } from 'node:fs/promises';
import { waitFor } from '../lab/wait.ts';
import { assertNothingLost, endWell, goesOn } from './copies-hold.ts';
import { events, patienceMs, setScene, status, waitForLibvirt, waitState } from './scene.ts';

const sizeBytes = 32 << 20;

describe('damage of a primary that the guest does not notice', function () {
  this.timeout(120_000);
  const scene = setScene();

  it('is one whose file is cut off while it runs: the guest goes on with its mirror', async () => {
    const { lab, agent } = scene;
    const mirror = await lab.nbd({ name: 'web1-mirror', sizeBytes });
    const image = await lab.image('web1.raw', 'raw', sizeBytes);
    const guest = await scene.guest({
      name: 'web1',
      // What is cut off is not among these blocks: the guest would notice it, if it read before it is moved.
      cmdline: 'witness.blocks=1000 witness.rate=50',
      disks: [{ dev: 'vda', bus: 'virtio', image }],
    });
    await agent.mustCdp('protect', 'web1', '--disk', 'vda', '--mirror', mirror.uri);
    await waitState(agent, 'web1', 'protected');

    await truncate(lab.path('web1.raw'), sizeBytes / 2);
    const moved = await waitState(agent, 'web1', 'failed-over');
    assert.deepEqual([moved.primary.current, moved.mirror.current], [false, true]);
    const [lost] = await events(agent, 'web1', 'primary-lost');
    assert.match(String(lost?.detail['why']), /web1\.raw' was cut off while QEMU has it open/);
    await goesOn(guest);
    await endWell(guest, [mirror.file]);
  });

  it('is a read that the mirror answered: the next agent knows of it, though QEMU does not, and moves the guest', async () => {
    const { lab } = scene;
    const primary = await lab.nbd({ name: 'web2-primary', sizeBytes });
    const mirror = await lab.nbd({ name: 'web2-mirror', sizeBytes });
    const guest = await scene.guest({
      name: 'web2',
      cmdline: 'witness.blocks=50 witness.rate=50',
      disks: [{ dev: 'vda', bus: 'virtio', image: { format: 'raw', nbd: primary.address } }],
    });
    await scene.agent.mustCdp('protect', 'web2', '--disk', 'vda', '--mirror', mirror.uri);
    await waitState(scene.agent, 'web2', 'protected');
    await goesOn(guest, 50);

    await scene.agent.kill('SIGTERM');
    const doomed = await lab.agent({ env: { VIRT_CDP_TEST_DIE_AFTER_STEPS: 'record' } });
    await waitForLibvirt(doomed);
    await waitState(doomed, 'web2', 'protected');
    primary.failReads();
    const dead = (): boolean => {
      try {
        return !process.kill(doomed.pid, 0);
      } catch {
        return true;
      }
    };
    await waitFor('the agent to die', dead, patienceMs, async () => JSON.stringify(await status(doomed, 'web2')));
    primary.heal();
    await goesOn(guest, 20);

    const agent = await lab.agent();
    await waitForLibvirt(agent);
    const moved = await waitState(agent, 'web2', 'failed-over');
    assert.deepEqual([moved.primary.current, moved.mirror.current], [false, true]);
    await goesOn(guest);
    await guest.shutdown();
    await assertNothingLost(guest, [mirror.file]);
  });
});
