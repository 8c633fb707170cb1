import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { agent } from './cases/agent.ts';
import { besideSync } from './cases/beside-sync.ts';
import { delta } from './cases/delta.ts';
import { fullSync } from './cases/full-sync.ts';
import { hook } from './cases/hook.ts';
import { pauses } from './cases/pauses.ts';
import { start } from './cases/start.ts';
import { writes } from './cases/writes.ts';
import { conditions } from './conditions.ts';
import { table, type Row } from './figures.ts';

const benches = [writes, pauses, fullSync, besideSync, delta, start, hook, agent];

const usage = `usage: npm run bench [-- --only NAME] [--quick]

Measures, each thing beside what it is to be compared with, and prints a table; dist/bench.json has the same.
NAME: ${benches.map(({ name }) => name).join(', ')}. --quick: few rounds of little, to see that it works.
`;

const { values } = parseArgs({
  options: {
    only: { type: 'string', multiple: true },
    quick: { type: 'boolean', default: false },
    help: { type: 'boolean', default: false },
  },
});
const { only, quick } = values;
const unknown = only?.find((name) => benches.every((bench) => bench.name !== name));
if (values.help || unknown !== undefined) {
  if (unknown !== undefined) process.stderr.write(`bench: there is no ${unknown}\n`);
  (values.help ? process.stdout : process.stderr).write(usage);
  process.exit(values.help ? 0 : 2);
}

// The laboratory ends with this process; what is in memory is taken away at its exit.
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.once(signal, () => process.exit(1));
const before = await conditions();
const rows: Row[] = [];
const failed: string[] = [];
for (const { name, run } of benches) {
  if (only !== undefined && !only.includes(name)) continue;
  process.stderr.write(`${name} ...\n`);
  const beganMs = performance.now();
  try {
    rows.push(...(await run({ quick })));
  } catch (error) {
    // The figures of the others are none the worse for it.
    failed.push(name);
    process.stderr.write(
      `${name} failed: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}\n`,
    );
  }
  process.stderr.write(`${name}: ${Math.round((performance.now() - beganMs) / 1000)} s\n`);
}
const { load } = await conditions();
const told = { ...before, quick, 'load at the end': load, failed: failed.join(', ') || 'none' };
for (const [what, text] of Object.entries(told)) console.log(`- ${what}: ${String(text)}`);
console.log(`\n${table(rows)}`);
mkdirSync('dist', { recursive: true });
writeFileSync(join('dist', 'bench.json'), `${JSON.stringify({ conditions: told, rows }, null, 2)}\n`);
process.exit(failed.length > 0 ? 1 : 0);
