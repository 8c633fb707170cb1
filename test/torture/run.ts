import { setTimeout as sleep } from 'node:timers/promises';
import { errorText } from '../../src/errors.ts';
import { describeScene } from '../integration/scene.ts';
import { checkFaultsAreSeen, checkPromises } from './checks.ts';
import { perform } from './deeds.ts';
import { deedText, schedule, type Step } from './schedule.ts';
import { domainShapes } from './shape.ts';
import { World } from './world.ts';

export interface Torture {
  seed: number;
  /** No round is begun after so long. */
  forMs: number;
  /** Carries out only the steps of these numbers, and the ends of rounds. */
  only?: ReadonlySet<number>;
  /** Rounds to carry out at most. */
  rounds?: number;
  /** Is told each step when it has ended, and of a failure all that one wants to know. */
  tell: (line: string) => void;
}

/**
 * Tortures virt-cdp by a schedule that the seed determines. What it does is the same each time; when a deed meets the agent is not.
 * @throws Violation, and what else kept it from going on
 */
export async function torture(options: Torture): Promise<{ steps: number; rounds: number }> {
  const { seed, forMs, only, rounds: mostRounds = Infinity, tell } = options;
  const shapes = domainShapes(seed);
  for (const { name, policy, depth, disks } of shapes) {
    const text = disks.map(
      ({ dev, iothread, primary, mirror }) =>
        `${dev}${iothread ? ' with iothread' : ''}, ${primary.format} ${primary.on} + ${mirror.format}`,
    );
    tell(`${name} (${policy}, depth ${depth}): ${text.join('; ')}`);
  }
  const world = await World.create(shapes);
  const beganMs = Date.now();
  const watch = new FaultWatch(world);
  let rounds = 0;
  let steps = 0;
  try {
    let pending: Promise<void>[] = [];
    for (const step of schedule(seed, shapes)) {
      const ends = step.deed.deed === 'settle';
      if (only !== undefined && !ends && !only.has(step.number)) continue;
      await sleep(step.gapMs);
      pending.push(carryOut(world, step, beganMs, tell));
      steps++;
      if (!step.waits && !ends) continue;
      await Promise.all(pending);
      pending = [];
      watch.check();
      await checkPromises(world);
      if (!ends) continue;
      rounds++;
      if (rounds >= mostRounds || Date.now() - beganMs > forMs) break;
    }
    return { steps, rounds };
  } catch (error) {
    const guests = world.domains.map(({ guest }) => guest);
    tell(await describeScene(world, guests));
    tell(`=== seed ${seed}: ${errorText(error)}`);
    throw error;
  } finally {
    watch.stop();
    await world.lab.close();
  }
}

async function carryOut(world: World, step: Step, beganMs: number, tell: (line: string) => void): Promise<void> {
  const at = Date.now() - beganMs;
  const line = `${String(step.number).padStart(4)} ${seconds(at)} ${deedText(step.deed)}${step.waits ? '' : ' &'}`;
  try {
    const outcome = await perform(world, step.deed);
    tell(`${line} -> ${outcome.replaceAll('\n', ' ')} (${seconds(Date.now() - beganMs - at)})`);
  } catch (error) {
    tell(`${line} -> ${errorText(error)}`);
    throw error;
  }
}

function seconds(ms: number): string {
  return `${(ms / 1000).toFixed(1).padStart(6)}s`;
}

/** Looks all the time whether a copy that takes no writes is called current. */
class FaultWatch {
  readonly #world: World;
  readonly #ended: Promise<void>;
  #stopped = false;
  #problem: unknown = null;

  constructor(world: World) {
    this.#world = world;
    this.#ended = this.#run();
  }

  check(): void {
    if (this.#problem !== null) throw this.#problem as Error;
  }

  stop(): void {
    this.#stopped = true;
    void this.#ended;
  }

  async #run(): Promise<void> {
    while (!this.#stopped) {
      await sleep(300);
      if (this.#world.faults.size === 0) continue;
      try {
        await checkFaultsAreSeen(this.#world);
      } catch (error) {
        this.#problem = error;
        return;
      }
    }
  }
}
