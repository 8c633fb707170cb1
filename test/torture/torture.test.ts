import assert from 'node:assert/strict';
import { torture } from './run.ts';
import { schedule, type Step } from './schedule.ts';
import { domainShapes } from './shape.ts';

/** Three rounds of a schedule that meets many kinds of deeds; `npm run torture` has all the others. */
const seed = 2720;
const rounds = 3;

describe('torture', function () {
  this.timeout(600_000);

  it('is the same for the same seed, and another for another', () => {
    const begun = (seed: number): Step[] => {
      const steps: Step[] = [];
      for (const step of schedule(seed, domainShapes(seed))) if (steps.push(step) === 300) break;
      return steps;
    };
    assert.deepEqual(begun(1), begun(1));
    assert.notDeepEqual(begun(1), begun(2));
  });

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
