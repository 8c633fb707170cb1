import assert from 'node:assert/strict';
import { imageName } from '../../src/storage/image.ts';
import { heal } from './happenings.ts';
import type { SimulatedDomain } from './simulated-domain.ts';
import { start } from './simulated-starts.ts';
import { stories, Telling, type Story } from './stories.ts';

type Calamity = (told: Telling) => void;

const killed: Record<string, Calamity> = {
  'the agent is killed; the next one comes at once': ({ agent }) => agent.crash(),
  'the agent is killed; a stranger resumes the guest, which writes': (told) => {
    told.agent.crash();
    told.domain.resume();
    told.guestWrites();
  },
};

const cutOff: Record<string, Calamity> = {
  'libvirtd is restarted': ({ agent }) => agent.loseLibvirt(),
};

describe('an agent that is killed', () => tellWith(killed));

describe('an agent whose libvirtd is restarted', () => tellWith(cutOff));

function tellWith(calamities: Record<string, Calamity>): void {
  for (const story of stories) {
    it(`at any instant: ${story.name}`, function () {
      this.timeout(60_000);
      const { ending: expected, instants } = tell(story, () => undefined);
      for (const [name, calamity] of Object.entries(calamities)) {
        for (let at = 0; at < instants; at++) {
          const { ending } = tell(story, (instant, told) => {
            if (instant === at) told.agent.happens(name, () => calamity(told));
          });
          if (story.mayEndOtherwise !== true) assert.deepEqual(ending, expected, `${name} at instant ${at}`);
        }
      }
    });
  }
}

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
