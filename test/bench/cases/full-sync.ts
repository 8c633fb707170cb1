import { must } from '../../lab/run.ts';
import type { Bench } from '../bench.ts';
import { row } from '../figures.ts';
import { fillAtRandom, Stage } from '../stage.ts';

/** A full sync of a running, idle guest's disk, against qemu-img convert of the same image onto another such server. */
export const fullSync: Bench = {
  name: 'full-sync',
  run: ({ quick }) =>
    Stage.with(async (stage) => {
      const sizeMiB = quick ? 64 : 1024;
      const sizeBytes = sizeMiB * (1 << 20);
      const primary = await stage.nbd({ name: 'primary', sizeBytes });
      const mirror = await stage.nbd({ name: 'mirror', sizeBytes });
      const other = await stage.nbd({ name: 'other', sizeBytes });
      fillAtRandom(primary.file, sizeMiB);
      await stage.lab.domain({
        name: 'web1',
        cmdline: 'witness.bench=1',
        disks: [{ dev: 'vda', bus: 'virtio', image: { format: 'raw', nbd: primary.address } }],
      });
      await stage.protect('web1', 'vda', mirror.uri);
      await convert(primary.uri, other.uri);
      const [syncs, copies, converts] = [[], [], []] as [number[], number[], number[]];
      for (let round = 0; round < (quick ? 2 : 7); round++) {
        converts.push(await timed(() => convert(primary.uri, other.uri)));
        const since = await stage.lastEvent();
        syncs.push(
          await timed(async () => {
            await stage.client.act('web1', 'resync', { full: true });
            await stage.eventAfter(since, 'web1', 'protected');
          }),
        );
        const [began, ended] = [
          await stage.eventAfter(since, 'web1', 'resync-started'),
          await stage.eventAfter(since, 'web1', 'resync-finished'),
        ];
        copies.push((Date.parse(ended.time) - Date.parse(began.time)) / 1000);
      }
      const against = { against: 'qemu-img convert -n -t none', bases: converts };
      return [
        row('full-sync', {
          what: `full sync of ${sizeMiB} MiB, from the command to protected`,
          unit: 's',
          values: syncs,
          ...against,
          aim: { text: '<= 1.15', met: ({ ratio }) => ratio.median <= 1.15 },
        }),
        row('full-sync', {
          what: '... of it, from resync-started to resync-finished',
          unit: 's',
          values: copies,
          ...against,
        }),
      ];
    }),
};

const convert = (from: string, to: string): Promise<string> =>
  must('qemu-img', 'convert', '-n', '-t', 'none', '-f', 'raw', '-O', 'raw', from, to);

async function timed(deed: () => Promise<unknown>): Promise<number> {
  const beganMs = performance.now();
  await deed();
  return (performance.now() - beganMs) / 1000;
}
