import assert from 'node:assert/strict';
import { imageName } from '../../src/storage/image.ts';
import { heal } from './happenings.ts';
import type { SimulatedDomain } from './simulated-domain.ts';
import { start } from './simulated-starts.ts';
import { stories, Telling, type Story } from './stories.ts';

/** What happens before the next agent comes. */
const interludes = {
  'the next one comes at once': () => undefined,
  'a stranger resumes the guest, which writes': (told) => {
    told.domain.resume();
    told.guestWrites();
  },
} satisfies Record<string, (told: Telling) => void>;

describe('an agent that is killed', () => {
  for (const story of stories) {
    it(`at any instant: ${story.name}`, function () {
      this.timeout(60_000);
      const { ending: expected, instants } = tell(story, () => undefined);
      for (const [name, interlude] of Object.entries(interludes)) {
        for (let at = 0; at < instants; at++) {
          const calamity = (told: Telling): void => {
            told.agent.happens(`the agent is killed; ${name}`, () => told.agent.crash());
            interlude(told);
          };
          const { ending } = tell(story, (instant, told) => {
            if (instant === at) calamity(told);
          });
          if (story.mayEndOtherwise !== true) assert.deepEqual(ending, expected, `killed at instant ${at}; ${name}`);
        }
      }
    });
  }
});

/** Tells the whole story; how it ends when all is calm, and how many instants it had. */
function tell(
  story: Story,
  at: (instant: number, told: Telling) => void,
): { ending: ReturnType<typeof endingOf>; instants: number } {
  let instants = 0;
  const told = new Telling(story, (instant, telling) => {
    instants = instant + 1;
    at(instant, telling);
  });
  try {
    told.tell(story);
    told.agent.finishPlan();
    heal(told.domain);
    told.domain.startAgent();
    if (told.domain.qemu === null) start(told.domain);
    told.agent.settle();
  } catch (error) {
    assert.fail(`${String(error)}\n${told.agent.trace.slice(-60).join('\n')}`);
  }
  return { ending: endingOf(told.domain), instants };
}

function endingOf({ record, persistent }: SimulatedDomain): unknown {
  return {
    disks: record.disks.map(({ dev, state, intent, primary, mirror }) => ({
      dev,
      state,
      intent: intent.kind,
      primary: [imageName(primary.image), primary.current],
      mirror: [imageName(mirror.image), mirror.current],
    })),
    defined: [...persistent].map(([dev, image]) => [dev, imageName(image)]),
  };
}
