import { spawn } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { renderHook } from '../../../src/config/hook-file.ts';
import { AgentClient } from '../../../src/control/client.ts';
import { domainRecordSchema, newDiskRecord, type DomainRecord } from '../../../src/protection/record.ts';
import { writeStaleSources } from '../../../src/protection/starts/stale-sources.ts';
import { parseImageUri } from '../../../src/storage/image.ts';
import { RecordStore } from '../../../src/store/record-store.ts';
import { waitFor } from '../../lab/wait.ts';
import type { Bench } from '../bench.ts';
import { row, type Row } from '../figures.ts';

const staleCopies = 100;
const xml = readFileSync(join(import.meta.dirname, '../../domain/xml/virt-install.xml'), 'utf8');
const strangersXml = xml.replace(/<uuid>.*<\/uuid>/, '<uuid>99999999-0000-4000-8000-000000000001</uuid>');
const uuid = /<uuid>(.*)<\/uuid>/.exec(xml)?.[1] ?? '';

const record: DomainRecord = {
  version: 1,
  uuid,
  name: 'web1',
  policy: 'available',
  lastStart: null,
  restoreOwed: null,
  disks: [
    newDiskRecord({ dev: 'vda', mirror: parseImageUri('/m.img'), rebuild: null }, parseImageUri('/p.img'), false),
  ],
};
const others = Array.from({ length: staleCopies }, (_, index) => ({
  ...record,
  disks: record.disks.map((disk) => ({
    ...disk,
    mirror: { ...disk.mirror, image: parseImageUri(`/var/lib/mirrors/domain-${index}.img`) },
  })),
}));

/** What libvirt's hook costs a start. Each case is the whole call as libvirt makes it, from spawn to exit. */
export const hook: Bench = {
  name: 'hook',
  run: async ({ quick }) => {
    const folder = mkdtempSync(join(tmpdir(), 'virt-cdp-bench-'));
    try {
      return await measure(folder, quick ? 3 : 40);
    } finally {
      rmSync(folder, { recursive: true });
    }
  },
};

async function measure(folder: string, rounds: number): Promise<Row[]> {
  const [store, socket] = [join(folder, 'store'), join(folder, 'sock')];
  mkdirSync(store);
  await (await RecordStore.open(store, domainRecordSchema)).save(uuid, record);
  const config = join(folder, 'virt-cdp.toml');
  writeFileSync(config, `store = "${store}"\nsocket = "${socket}"\nlibvirt.socket = "${folder}/no-libvirt"\n`);
  const agent = spawn(process.execPath, ['dist/virt-cdpd.js', '--config', config], { stdio: 'ignore' });
  try {
    const client = new AgentClient({ socketPath: socket });
    await waitFor(
      'the agent',
      () =>
        client.domains(false).then(
          () => true,
          () => false,
        ),
      20_000,
    );
    await writeStaleSources(store, [record, ...others]);
    const up = script(folder, 'up', store, socket);
    const down = script(folder, 'down', store, join(folder, 'no-agent'));
    const nothing = (): Promise<number> => once('/bin/true', 'prepare', xml);
    const cases: Record<string, () => Promise<number>> = {
      'a call of the hook for what concerns nobody': () => once(up, 'started', xml),
      'a start of a domain that is not protected': () => once(up, 'prepare', strangersXml),
      'a start of a protected domain': () => once(up, 'prepare', xml),
      'a start of a protected domain, the agent down': () => once(down, 'prepare', xml),
    };
    const times = new Map(Object.keys(cases).map((what) => [what, { values: [] as number[], bases: [] as number[] }]));
    for (let round = -3; round < rounds; round++)
      for (const [what, run] of Object.entries(cases)) {
        const [base, value] = [await nothing(), await run()];
        if (round < 0) continue;
        times.get(what)?.bases.push(base);
        times.get(what)?.values.push(value);
      }
    return [...times].map(([what, { values, bases }]) =>
      row('hook', { what, unit: 'ms', values, against: 'a hook that does nothing (/bin/true)', bases }),
    );
  } finally {
    agent.kill('SIGKILL');
    await new Promise((done) => agent.once('exit', done));
  }
}

function script(folder: string, name: string, store: string, agentSocket: string): string {
  const path = join(folder, name);
  const text = renderHook(readFileSync('hooks/qemu', 'utf8'), process.execPath, resolve('dist/virt-cdp-hook.js'), {
    socket: agentSocket,
    store,
    hook: { deadlineMs: 1000 },
  });
  writeFileSync(path, text, { mode: 0o755 });
  return path;
}

async function once(file: string, operation: string, stdin: string): Promise<number> {
  const beganMs = performance.now();
  const child = spawn(file, ['web1', operation, 'begin', '-'], { cwd: '/', stdio: ['pipe', 'ignore', 'ignore'] });
  child.stdin.on('error', () => undefined).end(stdin);
  const code = await new Promise((done) => child.once('exit', done));
  if (code !== 0) throw new Error(`${file} ${operation}: exit ${String(code)}`);
  return performance.now() - beganMs;
}
