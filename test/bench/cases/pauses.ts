import { setTimeout as sleep } from 'node:timers/promises';
import { LibvirtClient } from '../../../src/libvirt/client.ts';
import type { Bench } from '../bench.ts';
import { row } from '../figures.ts';
import { pausedMs, Stage } from '../stage.ts';

/** QEMU tells one error a second of each node (monitor/monitor.c); of a disk that did not fail a second ago it tells at once. */
const quietMs = 1_000;

/** How long a guest stands still while its disk is armed, fails over, and moves back. */
export const pauses: Bench = {
  name: 'pauses',
  run: ({ quick }) =>
    Stage.with(async (stage) => {
      const primary = await stage.nbd({ name: 'primary' });
      const mirror = await stage.nbd({ name: 'mirror' });
      await stage.lab.domain({
        name: 'web1',
        cmdline: 'witness.rate=200',
        disks: [{ dev: 'vda', bus: 'virtio', image: { format: 'raw', nbd: primary.address } }],
      });
      await stage.protect('web1', 'vda', mirror.uri);
      const libvirt = await LibvirtClient.connect({ socketPath: stage.lab.libvirtd.socket });
      const domain = await libvirt.lookupByName('web1');
      const [plain, arm, failover, back] = [[], [], [], []] as [number[], number[], number[], number[]];
      for (let round = 0; round < (quick ? 2 : 20); round++) {
        const beganMs = performance.now();
        await libvirt.suspend(domain);
        await libvirt.resume(domain);
        plain.push(performance.now() - beganMs);

        let since = await stage.lastEvent();
        await stage.client.act('web1', 'hold', {});
        await stage.eventAfter(since, 'web1', 'held');
        await stage.client.act('web1', 'release', {});
        arm.push(pausedMs(await stage.eventAfter(since, 'web1', 'protected')));

        await sleep(quietMs);
        since = await stage.lastEvent();
        primary.failAll();
        failover.push(pausedMs(await stage.eventAfter(since, 'web1', 'failed-over')));
        primary.heal();
        await stage.client.act('web1', 'rebuild', { to: 'original' });
        back.push(pausedMs(await stage.eventAfter(since, 'web1', 'protected')));
      }
      await libvirt.close();
      const against = 'a suspend and resume by libvirt';
      const common = { unit: 'ms', against, bases: plain };
      return [
        row('pauses', { what: 'pause to arm', values: arm, ...common }),
        row('pauses', {
          ...common,
          what: 'from I/O error to running',
          values: failover,
          aim: { text: 'median < 50 ms', met: ({ value }) => value.median < 50 },
        }),
        row('pauses', { what: 'pause to move back', values: back, ...common }),
      ];
    }),
};
