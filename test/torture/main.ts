import { parseArgs } from 'node:util';
import { torture } from './run.ts';
import { Violation } from './violation.ts';

/** npm run torture -- --seed N --minutes M [--rounds R] [--only 3,5-9] */
const { values } = parseArgs({
  options: {
    seed: { type: 'string' },
    minutes: { type: 'string', default: '2' },
    rounds: { type: 'string' },
    only: { type: 'string' },
  },
});

const seed = Number(values.seed ?? Date.now() % 1_000_000);
const only = values.only === undefined ? {} : { only: numbers(values.only) };
const rounds = values.rounds === undefined ? {} : { rounds: Number(values.rounds) };
process.stdout.write(`seed ${seed}\n`);
try {
  const tell = (line: string): void => void process.stdout.write(`${line}\n`);
  const did = await torture({ seed, forMs: Number(values.minutes) * 60_000, tell, ...only, ...rounds });
  process.stdout.write(`seed ${seed}: ${did.steps} steps in ${did.rounds} rounds, no promise broken\n`);
} catch (error) {
  if (!(error instanceof Violation)) process.stdout.write(`${error instanceof Error ? error.stack : String(error)}\n`);
  process.stdout.write(`FAILED. To try again: npm run torture -- --seed ${seed} --minutes ${values.minutes}\n`);
  process.exitCode = 1;
}

/** `3,5-7`: 3, 5, 6 and 7. */
function numbers(list: string): Set<number> {
  return new Set(
    list.split(',').flatMap((part) => {
      const [first = 0, last = first] = part.split('-').map(Number);
      return Array.from({ length: last - first + 1 }, (_, index) => first + index);
    }),
  );
}
