import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { parse, stringify } from 'smol-toml';
import type { Guest } from '../../lab/guest.ts';
import type { NbdServer } from '../../lab/storage.ts';
import { waitFor } from '../../lab/wait.ts';
import type { Bench } from '../bench.ts';
import { row, type Comparison, type Row } from '../figures.ts';
import { patienceMs, Stage } from '../stage.ts';

/** What is under each of the guest's disks; each has a primary of its own, of the same kind. */
const kinds = {
  vda: 'unprotected',
  vdb: 'protected (quorum)',
  vdc: 'protected (mirror engine)',
  vdd: 'virsh blockcopy --synchronous-writes',
} as const;

type Dev = keyof typeof kinds;
const devs = Object.keys(kinds) as Dev[];

/** Both copies are NBD exports of nbdkit on this machine, whose every write takes so much longer. */
const storages = [
  { primaryDelayMs: 0, mirrorDelayMs: 0 },
  { primaryDelayMs: 3, mirrorDelayMs: 3 },
  { primaryDelayMs: 0, mirrorDelayMs: 3 },
] as const;

type Storage = (typeof storages)[number];

interface Load {
  dev: Dev;
  name: string;
  operationsPerS: number;
  medianMs: number;
}

const loadNames = { '4k-sync': 4 << 10, '4k-depth-32': 4 << 10, '1m-sequential': 1 << 20 } as const;

/** What a guest's writes cost: one guest, whose disks take turns. */
export const writes: Bench = {
  name: 'writes',
  run: async ({ quick }) => {
    const rows: Row[] = [];
    for (const storage of storages) {
      if (quick && storage.mirrorDelayMs > 0) continue;
      rows.push(...(await Stage.with((stage) => measure(stage, storage, quick ? [2, 200] : [9, 500]))));
    }
    return rows;
  },
};

async function measure(stage: Stage, storage: Storage, [rounds, loadMs]: [number, number]): Promise<Row[]> {
  const guest = await setUp(stage, storage, loadMs);
  const console = new LoadConsole(guest);
  // The first press warms caches and allocates what is written for the first time.
  await console.press();
  const passes: Load[][] = [];
  for (let round = 0; round < rounds; round++) passes.push(await console.press());
  return Object.keys(loadNames).flatMap((load) => compare(load as keyof typeof loadNames, passes, storage));
}

async function setUp(stage: Stage, { primaryDelayMs, mirrorDelayMs }: Storage, loadMs: number): Promise<Guest> {
  const { lab, agent } = stage;
  const [primaries, mirrors]: [NbdServer[], NbdServer[]] = [[], []];
  for (const dev of devs) {
    primaries.push(await stage.nbd({ name: `${dev}-primary`, writeDelayMs: primaryDelayMs }));
    mirrors.push(await stage.nbd({ name: `${dev}-mirror`, writeDelayMs: mirrorDelayMs }));
  }
  const guest = await lab.domain({
    name: 'web1',
    memoryMiB: 192,
    cmdline: `witness.bench=${loadMs}`,
    disks: devs.map((dev, index) => ({ dev, bus: 'virtio', image: { format: 'raw', nbd: primaries[index]!.address } })),
  });
  await stage.protect('web1', 'vdb', mirrors[1]!.uri);
  // The engine is chosen when a disk is armed; the one above stays as it is.
  const config = parse(readFileSync(agent.configPath, 'utf8'));
  writeFileSync(agent.configPath, stringify({ ...config, engine: 'mirror' }));
  await waitFor(
    'the agent to read its configuration',
    () => readFileSync(agent.logPath, 'utf8').includes('configuration reloaded'),
    patienceMs,
  );
  await stage.protect('web1', 'vdc', mirrors[2]!.uri);
  const address = mirrors[3]!.address;
  if (!('socket' in address)) throw new Error('the lab serves on unix sockets');
  const xml = lab.path('blockcopy.xml');
  writeFileSync(
    xml,
    `<disk type='network'><driver type='raw'/><source protocol='nbd' name='${address.export}'><host transport='unix' ` +
      `socket='${address.socket}'/></source></disk>`,
  );
  const options = ['--synchronous-writes', '--transient-job', '--reuse-external', '--wait'];
  await lab.virsh('blockcopy', 'web1', 'vdd', '--xml', xml, ...options);
  await assertKinds(guest);
  return guest;
}

/** What is measured is what it is called. */
async function assertKinds(guest: Guest): Promise<void> {
  const devices = (await guest.qmp('query-block')) as { inserted?: { drv: string } }[];
  // QEMU does not show the filter of a job that libvirt began (blockdev.c: bdrv_skip_implicit_filters).
  const drivers = devices.flatMap(({ inserted }) => inserted?.drv ?? []);
  assert.deepEqual(drivers, ['raw', 'quorum', 'mirror_top', 'raw']);
  const jobs = (await guest.qmp('query-block-jobs')) as { device: string; ready: boolean }[];
  assert.ok(
    jobs.some(({ device, ready }) => device.startsWith('copy-vdd') && ready),
    JSON.stringify(jobs),
  );
}

/** The guest's console, which says what its disks bore. */
class LoadConsole {
  readonly #guest: Guest;
  #done = 0;

  constructor(guest: Guest) {
    this.#guest = guest;
  }

  /** At a press of the power button each disk bears each load; what came of it. */
  async press(): Promise<Load[]> {
    await this.#guest.pressPowerButton();
    this.#done += 1;
    const text = await waitFor(
      'the loads to be done',
      () => {
        const said = readFileSync(this.#guest.serialPath, 'latin1').split('LOADS DONE');
        return said.length > this.#done ? said[this.#done - 1] : undefined;
      },
      patienceMs,
    );
    return [...text.matchAll(/^LOAD (\w+) (\S+) (\d+) (\d+) (\d+) (\d+)\r?$/gm)].map(
      ([, dev, name = '', operations, micros, median]) => ({
        dev: dev as Dev,
        name,
        operationsPerS: (Number(operations) * 1e6) / Number(micros),
        medianMs: Number(median) / 1000,
      }),
    );
  }
}

function compare(name: keyof typeof loadNames, passes: Load[][], storage: Storage): Row[] {
  const of = (dev: Dev, what: (load: Load) => number): number[] =>
    passes.map((pass) => what(pass.find((one) => one.dev === dev && one.name === name)!));
  const mib = loadNames[name] / (1 << 20);
  const equal = storage.primaryDelayMs === storage.mirrorDelayMs;
  const where = `delays of ${storage.primaryDelayMs} and ${storage.mirrorDelayMs} ms`;
  const others = devs.filter((dev) => dev !== 'vda');
  return others.flatMap((dev) => {
    const latency: Comparison = {
      what: `${name} latency, ${kinds[dev]}, ${where}`,
      unit: 'ms',
      values: of(dev, ({ medianMs }) => medianMs),
      against: 'unprotected',
      bases: of('vda', ({ medianMs }) => medianMs),
      ...(dev === 'vdb' && equal && { aim: { text: '<= 1.10', met: ({ ratio }) => ratio.median <= 1.1 } }),
    };
    const throughput: Comparison = {
      what: `${name} throughput, ${kinds[dev]}, ${where}`,
      unit: 'MiB/s',
      values: of(dev, ({ operationsPerS }) => operationsPerS * mib),
      against: 'unprotected',
      bases: of('vda', ({ operationsPerS }) => operationsPerS * mib),
    };
    return [row('writes', latency), row('writes', throughput)];
  });
}
