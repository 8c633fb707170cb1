import assert from 'node:assert/strict';
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { run } from '../lab/run.ts';
import { waitFor } from '../lab/wait.ts';
import { endWell, goesOn } from './copies-hold.ts';
import { events, patienceMs, setScene, waitState } from './scene.ts';

describe('a rebuild that nobody asked for', function () {
  this.timeout(150_000);
  const scene = setScene({ config: { rebuild: { auto: true } } });

  it('leaves a file system its last space and tells the figures; it begins by itself once there is room', async () => {
    const { lab, agent } = scene;
    const folder = lab.path('new');
    mkdirSync(folder);
    const inside = async (...command: [string, ...string[]]): Promise<void> => {
      const [program, ...args] = lab.libvirtd.namespace.command(...command);
      const { code, stderr } = await run(program, args);
      assert.equal(code, 0, stderr);
    };
    await inside('mount', '-t', 'tmpfs', '-o', 'size=66m', 'virt-cdp-lab', folder);

    const primary = await lab.nbd({ name: 'a1-primary' });
    const mirror = await lab.nbd({ name: 'a1-mirror' });
    const image = { format: 'raw' as const, nbd: primary.address };
    const guest = await scene.guest({
      name: 'a1',
      cmdline: 'witness.rate=50',
      disks: [{ dev: 'vda', bus: 'virtio', image }],
    });
    const target = join(folder, '{domain}-{dev}-{n}.raw');
    await agent.mustCdp('protect', 'a1', '--disk', 'vda', '--mirror', mirror.uri, '--rebuild-to', target);
    primary.failAll();
    await waitState(agent, 'a1', 'failed-over');
    const [failed] = await waitFor(
      'the rebuild to be refused',
      async () => {
        const found = await events(agent, 'a1', 'rebuild-failed');
        return found.length > 0 ? found : undefined;
      },
      patienceMs,
    );
    const why = String(failed?.detail['why']);
    assert.match(why, /needs 67108864 bytes.*\d+ free, of which \d+ must stay free/);
    assert.equal(typeof failed?.detail['againInMs'], 'number');
    await goesOn(guest, 20);

    await inside('umount', folder);
    const back = await waitState(agent, 'a1', 'protected');
    assert.equal(back.primary.source, join(folder, 'a1-vda-1.raw'));
    await goesOn(guest, 20);
    await endWell(guest, [back.primary.source, mirror.file]);
  });
});
