import { torture } from './run.ts';

/** Three rounds of a schedule that meets many kinds of deeds; `npm run torture` has all the others. */
const seed = 519;
const rounds = 3;

describe('torture', function () {
  this.timeout(600_000);

  it(`by the schedule of seed ${seed} breaks no promise`, async () => {
    const told: string[] = [];
    try {
      await torture({ seed, rounds, forMs: Infinity, tell: (line) => void told.push(line) });
    } catch (error) {
      process.stderr.write(`${told.join('\n')}\n`);
      throw error;
    }
  });
});
