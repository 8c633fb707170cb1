import { readFileSync, truncateSync } from 'node:fs';
import { setTimeout as passed } from 'node:timers/promises';
import type { Guest } from '../../lab/guest.ts';
import type { NbdServer } from '../../lab/storage.ts';
import type { Bench } from '../bench.ts';
import { figure, row, type Figure } from '../figures.ts';
import { fillAtRandom, Stage } from '../stage.ts';

const writesPerS = 200;
const delayMs = 1;

/** What a guest that writes and flushes notices of a sync that its agent paces, against its own latency before each. */
export const besideSync: Bench = {
  name: 'beside-sync',
  run: ({ quick }) =>
    Stage.with(async (stage) => {
      const [sizeMiB, calmMs] = quick ? [256, 2_000] : [2048, 6_000];
      const options = { sizeBytes: sizeMiB * (1 << 20), writeDelayMs: delayMs };
      const primary = await stage.nbd({ name: 'primary', ...options });
      const mirror = await stage.nbd({ name: 'mirror', ...options });
      fillAtRandom(primary.file, sizeMiB);
      const guest = await stage.lab.domain({
        name: 'web1',
        cmdline: `witness.rate=${writesPerS}`,
        disks: [{ dev: 'vda', bus: 'virtio', image: { format: 'raw', nbd: primary.address } }],
      });
      await stage.protect('web1', 'vda', mirror.uri);
      // Whichever of the two is not in use is what the next rebuild makes.
      const disks = [primary, await stage.nbd({ name: 'other', ...options })] as const;
      const kinds: Kind[] = [
        {
          what: `a full sync of ${sizeMiB} MiB`,
          begin: () => stage.client.act('web1', 'resync', { full: true }),
        },
        {
          what: 'the delta of an outage',
          before: () => outage(stage, calmMs),
          begin: () => stage.client.act('web1', 'release', {}),
        },
        {
          what: `a rebuild of ${sizeMiB} MiB`,
          before: async (round) => {
            await loss(stage, disks[round % 2]!);
            wipe(disks[(round + 1) % 2]!, options.sizeBytes);
          },
          begin: (round) => stage.client.act('web1', 'rebuild', { to: disks[(round + 1) % 2]!.uri }),
        },
      ];
      const rows = [];
      for (const { what, before, begin } of kinds) {
        const [calm, beside] = [[], []] as [Latencies[], Latencies[]];
        for (let round = 0; round < (quick ? 1 : 5); round++) {
          calm.push(await latencies(guest, () => passed(calmMs)));
          await before?.(round);
          const since = await stage.lastEvent();
          beside.push(
            await latencies(guest, async () => {
              await begin(round);
              await stage.eventAfter(since, 'web1', 'protected');
            }),
          );
        }
        const where = `of ${writesPerS} writes and flushes a second, beside ${what}`;
        const compare = (name: string, of: (one: Latencies) => number) => ({
          what: `${name} ${where}`,
          unit: 'ms',
          values: beside.map(of),
          against: 'before it',
          bases: calm.map(of),
        });
        rows.push(
          row('beside-sync', {
            ...compare('mean latency', ({ mean }) => mean),
            aim: { text: '< 2', met: ({ ratio }) => ratio.median < 2 },
          }),
          row(
            'beside-sync',
            compare('median latency', ({ median }) => median),
          ),
          row(
            'beside-sync',
            compare('95 % of the latencies', ({ high }) => high),
          ),
        );
      }
      return rows;
    }),
};

interface Kind {
  what: string;
  /** Done first, and not measured. */
  before?: (round: number) => Promise<void>;
  begin: (round: number) => Promise<unknown>;
}

interface Latencies extends Figure {
  mean: number;
}

/** Of what the guest acknowledged while something was done, in milliseconds. */
async function latencies(guest: Guest, meanwhile: () => Promise<unknown>): Promise<Latencies> {
  const said = (): string => readFileSync(guest.serialPath, 'latin1');
  const from = said().length;
  await meanwhile();
  const values = [
    ...said()
      .slice(from)
      .matchAll(/^ACK \w+ \d+ \d+ (\d+)\r?$/gm),
  ].map(([, us]) => Number(us) / 1000);
  return { ...figure(values), mean: values.reduce((sum, one) => sum + one, 0) / values.length };
}

async function outage(stage: Stage, ms: number): Promise<void> {
  const since = await stage.lastEvent();
  await stage.client.act('web1', 'hold', {});
  await stage.eventAfter(since, 'web1', 'held');
  await passed(ms);
}

/** The guest goes on with its mirror alone. */
async function loss(stage: Stage, primary: NbdServer): Promise<void> {
  const since = await stage.lastEvent();
  primary.failAll();
  await stage.eventAfter(since, 'web1', 'failed-over');
  primary.heal();
}

/** A rebuild overwrites nobody's data. */
function wipe({ file }: NbdServer, sizeBytes: number): void {
  for (const size of [0, sizeBytes]) truncateSync(file, size);
}
