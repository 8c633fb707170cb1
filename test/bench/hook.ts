/**
 * What libvirt's hook costs a start: `npm run build && npx tsx test/bench/hook.ts [ROUNDS]`, on a machine with nothing else to do, or
 * behind `chrt -f 1`. Each
 * case is the whole call as libvirt makes it, from spawn to exit; their rounds take turns, so that what else the machine does hits all.
 */
import { spawn } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { renderHook } from '../../src/config/hook-file.ts';
import { AgentClient } from '../../src/control/client.ts';
import { domainRecordSchema, newDiskRecord, type DomainRecord } from '../../src/protection/record.ts';
import { writeStaleSources } from '../../src/protection/starts/stale-sources.ts';
import { parseImageUri } from '../../src/storage/image.ts';
import { RecordStore } from '../../src/store/record-store.ts';
import { waitFor } from '../lab/wait.ts';

const rounds = Number(process.argv[2] ?? 40);
const staleCopies = 100;
const folder = mkdtempSync(join(tmpdir(), 'virt-cdp-bench-'));
const [store, socket] = [join(folder, 'store'), join(folder, 'sock')];
const xml = readFileSync(join(import.meta.dirname, '../domain/xml/virt-install.xml'), 'utf8');
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

function script(name: string, agentSocket: string): string {
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
  const [up, down] = [script('up', socket), script('down', join(folder, 'no-agent'))];
  writeFileSync(join(folder, 'idle-node'), `#!/bin/sh\nexec '${process.execPath}' -e 0\n`, { mode: 0o755 });
  const cases: Record<string, () => Promise<number>> = {
    'a program that does nothing': () => once('/bin/true', 'prepare', xml),
    'node, doing nothing': () => once(join(folder, 'idle-node'), 'prepare', xml),
    'started, of any domain': () => once(up, 'started', xml),
    'prepare, not protected': () => once(up, 'prepare', strangersXml),
    'prepare, protected, agent up': () => once(up, 'prepare', xml),
    'prepare, protected, agent down': () => once(down, 'prepare', xml),
  };
  const times = new Map(Object.keys(cases).map((name) => [name, [] as number[]]));
  for (let round = 0; round < rounds + 3; round++)
    for (const [name, run] of Object.entries(cases)) {
      const ms = await run();
      if (round >= 3) times.get(name)?.push(ms);
    }
  for (const [name, all] of times) {
    const sorted = all.sort((a, b) => a - b);
    const at = (share: number): string => (sorted[Math.floor(share * (sorted.length - 1))] ?? NaN).toFixed(1);
    console.log(`${name.padEnd(32)} median ${at(0.5)} ms, 5 % to 95 %: ${at(0.05)} to ${at(0.95)} ms`);
  }
} finally {
  agent.kill('SIGKILL');
  rmSync(folder, { recursive: true });
}
