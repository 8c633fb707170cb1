import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Guest } from '../../lab/guest.ts';
import type { Bench } from '../bench.ts';
import { row } from '../figures.ts';
import { Stage } from '../stage.ts';

/** How the disk changes while the mirror is out: so many writes of so much each, at places all over the disk. */
const patterns = [
  { what: '1 MiB each', lengthKiB: 1024, writes: 16 },
  { what: '64 KiB each', lengthKiB: 64, writes: 64 },
  { what: '4 KiB each', lengthKiB: 4, writes: 64 },
];

const diskMiB = 256;

/** What a delta sends to the mirror, by its server's own log, against what was changed. */
export const delta: Bench = {
  name: 'delta',
  run: ({ quick }) =>
    Stage.with(async (stage) => {
      const logFile = join(stage.memory, 'mirror.log');
      const primary = await stage.nbd({ name: 'primary', sizeBytes: diskMiB << 20 });
      const mirror = await stage.nbd({ name: 'mirror', sizeBytes: diskMiB << 20, logFile });
      const guest = await stage.lab.domain({
        name: 'web1',
        cmdline: 'witness.bench=1',
        disks: [{ dev: 'vda', bus: 'virtio', image: { format: 'raw', nbd: primary.address } }],
      });
      await stage.protect('web1', 'vda', mirror.uri);
      const rows = [];
      for (const { what, lengthKiB, writes } of patterns) {
        const [sent, changed] = [[], []] as [number[], number[]];
        for (let round = 0; round < (quick ? 1 : 5); round++) {
          const since = await stage.lastEvent();
          await stage.client.act('web1', 'hold', {});
          await stage.eventAfter(since, 'web1', 'held');
          await change(guest, lengthKiB, writes);
          const before = sentBytes(logFile);
          await stage.client.act('web1', 'release', {});
          await stage.eventAfter(since, 'web1', 'protected');
          sent.push((sentBytes(logFile) - before) / 1024);
          changed.push(lengthKiB * writes);
          assert.ok(sent.at(-1)! >= changed.at(-1)!, 'not all that changed was sent');
        }
        rows.push(
          row('delta', {
            what: `sent by a delta of ${writes} scattered writes of ${what}`,
            unit: 'KiB',
            values: sent,
            against: 'changed',
            bases: changed,
            ...(lengthKiB >= 64 && { aim: { text: '<= 1.2', met: ({ ratio }) => ratio.median <= 1.2 } }),
          }),
        );
      }
      return rows;
    }),
};

/** Writes through the guest's own device, at places that are as far from each other as can be, aligned to the length. */
async function change(guest: Guest, lengthKiB: number, writes: number): Promise<void> {
  const strideKiB = (diskMiB * 1024) / writes;
  for (let index = 0; index < writes; index++) {
    const command = `qemu-io -d /machine/peripheral/virtio-disk0/virtio-backend "write -P ${1 + (index % 255)} ${index * strideKiB}k ${lengthKiB}k"`;
    const said = await guest.qmp('human-monitor-command', { 'command-line': command });
    if (said !== '') throw new Error(`${command}: ${String(said)}`);
  }
}

/** By nbdkit-log-filter(1). */
function sentBytes(logFile: string): number {
  const counts = readFileSync(logFile, 'latin1').matchAll(/ (?:Write|Zero) id=\d+ offset=\S+ count=(0x[0-9a-f]+)/g);
  return [...counts].reduce((sum, [, count]) => sum + Number(count), 0);
}
