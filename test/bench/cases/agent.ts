import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { tinyDomainXml, writeBootSector } from '../../lab/boot-sector.ts';
import { createImage, type NbdServer } from '../../lab/storage.ts';
import type { Bench } from '../bench.ts';
import { figure, row, type Figure, type Row } from '../figures.ts';
import { pausedMs, Stage } from '../stage.ts';

const hundred = 100;

/** A machine that can't start those of one count within this is measured with what there is. */
const growthMs = 480_000;

/** What the agent takes while many domains idle, and how long it needs for all when the one server of their primaries fails. */
export const agent: Bench = {
  name: 'agent',
  run: ({ quick }) =>
    Stage.with(async (stage) => {
      const crowd = await Crowd.gather(stage);
      const rows: Row[] = [];
      const alone = await idle(stage, quick);
      for (const wanted of quick ? [1, 10] : [1, 10, 50, hundred]) {
        const count = await crowd.growTo(wanted);
        rows.push(...idleRows(count, await idle(stage, quick), alone));
        if (count < wanted) break;
      }
      return [...rows, ...(await crowd.failOver())];
    }),
};

interface Idle {
  /** Of one core, of each second; the agent's own and its children's. */
  cpuPercent: number[];
  residentMiB: number[];
}

/** Clock ticks a second, in /proc (proc(5)). */
const ticksPerS = 100;

async function idle({ agent: { pid } }: Stage, quick: boolean): Promise<Idle> {
  const found: Idle = { cpuPercent: [], residentMiB: [] };
  const windowS = quick ? 2 : 15;
  await sleep(quick ? 1000 : 10_000);
  for (let window = 0; window < (quick ? 2 : 4); window++) {
    const before = cpuTicks(pid);
    await sleep(windowS * 1000);
    found.cpuPercent.push(((cpuTicks(pid) - before) / ticksPerS / windowS) * 100);
    const resident = /^VmRSS:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1];
    found.residentMiB.push(Number(resident) / 1024);
  }
  return found;
}

/** utime, stime, cutime and cstime of proc(5): its children are the probes. */
function cpuTicks(pid: number): number {
  const fields = readFileSync(`/proc/${pid}/stat`, 'utf8')
    .replace(/^.*\) /, '')
    .split(' ');
  return fields.slice(11, 15).reduce((sum, ticks) => sum + Number(ticks), 0);
}

const domains = (count: number): string => `${count} domain${count === 1 ? '' : 's'}`;

function idleRows(count: number, found: Idle, alone: Idle): Row[] {
  const against = 'no protected domain';
  const common = { against, bases: found.cpuPercent.map((_, index) => alone.cpuPercent[index] ?? NaN) };
  return [
    row('agent', {
      ...common,
      what: `the agent's CPU, ${domains(count)} idle`,
      unit: '% of a core',
      values: found.cpuPercent,
      ...(count === hundred && { aim: { text: '< 1 %', met: ({ value }: { value: Figure }) => value.median < 1 } }),
    }),
    row('agent', {
      what: `the agent's memory, ${domains(count)}`,
      unit: 'MiB',
      values: found.residentMiB,
      against,
      bases: alone.residentMiB,
      ...(count === hundred && { aim: { text: '< 150 MB', met: ({ value }: { value: Figure }) => value.high < 143 } }),
    }),
  ];
}

type Folders = Record<'primaries' | 'mirrors', string>;

/** Tiny domains whose primaries are all on one server, and their mirrors on another. */
class Crowd {
  readonly #stage: Stage;
  readonly #primaries: NbdServer;
  readonly #mirrors: NbdServer;
  readonly #folders: Folders;
  readonly #names: string[] = [];

  private constructor(stage: Stage, primaries: NbdServer, mirrors: NbdServer, folders: Folders) {
    this.#stage = stage;
    this.#primaries = primaries;
    this.#mirrors = mirrors;
    this.#folders = folders;
  }

  static async gather(stage: Stage): Promise<Crowd> {
    const folders: Folders = { primaries: join(stage.memory, 'primaries'), mirrors: join(stage.memory, 'mirrors') };
    const serve = (name: keyof Folders): Promise<NbdServer> => {
      mkdirSync(folders[name]);
      return stage.lab.nbd({ name, folder: folders[name] });
    };
    return new Crowd(stage, await serve('primaries'), await serve('mirrors'), folders);
  }

  /** @returns how many there are, all protected: fewer where the machine takes too long to start them */
  async growTo(count: number): Promise<number> {
    const { lab, client } = this.#stage;
    const since = await this.#stage.lastEvent();
    const until = Date.now() + growthMs;
    const fresh: string[] = [];
    while (this.#names.length + fresh.length < count && Date.now() < until) {
      const name = `web${this.#names.length + fresh.length}`;
      await writeBootSector(await createImage(join(this.#folders.primaries, name), 'raw', 1 << 20));
      await createImage(join(this.#folders.mirrors, name), 'raw', 1 << 20);
      const { address } = this.#primaries;
      if (!('socket' in address)) throw new Error('the lab serves on unix sockets');
      const xml = lab.path(`${name}.xml`);
      writeFileSync(xml, tinyDomainXml(name, { export: name, socket: address.socket }));
      await lab.virsh('define', xml);
      await lab.virsh('start', name);
      await client.act(name, 'protect', { disk: 'vda', mirror: this.#mirrors.uri.replace('mirrors', name) });
      fresh.push(name);
    }
    await this.#stage.eventOfAll(since, fresh, 'protected');
    this.#names.push(...fresh);
    return this.#names.length;
  }

  async failOver(): Promise<Row[]> {
    const since = await this.#stage.lastEvent();
    const failedAtMs = Date.now();
    this.#primaries.failAll();
    const moves = await this.#stage.eventOfAll(since, this.#names, 'failed-over');
    const pauses = moves.map(pausedMs);
    const lastS = (Math.max(...moves.map(({ time }) => Date.parse(time))) - failedAtMs) / 1000;
    const count = this.#names.length;
    return [
      row('agent', {
        what: `one backend of ${count} domains fails: until the last one runs again`,
        unit: 's',
        values: [lastS],
        against: 'the longest that one of them stood still',
        bases: [Math.max(...pauses) / 1000],
        ...(count === hundred && { aim: { text: '< 5 s', met: ({ value }: { value: Figure }) => value.median < 5 } }),
      }),
      row('agent', {
        what: `... of each, from I/O error to running`,
        unit: 'ms',
        values: pauses,
        against: 'the quickest of them',
        bases: pauses.map(() => figure(pauses).low),
      }),
    ];
  }
}
