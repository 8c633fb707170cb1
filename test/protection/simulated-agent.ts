import assert from 'node:assert/strict';
import { plan, withDisk } from '../../src/protection/planner/plan.ts';
import { stateOf } from '../../src/protection/status.ts';
import type { Step } from '../../src/protection/steps.ts';
import { assertPromises, assertSettled } from './promises.ts';
import type { SimulatedDomain } from './simulated-domain.ts';
import { Failed, Refused } from './simulated-qemu.ts';
import { executeSimulated } from './simulated-steps.ts';

/** A calm domain that has not come to rest after so many looks never will. */
const maxLooks = 150;

/** A turn that takes more steps goes in circles. */
const maxSteps = 300;

/** The agent's loop, one step at a time, so that anything can happen between two. All that happens is written down. */
export class SimulatedAgent {
  readonly trace: string[] = [];
  readonly #domain: SimulatedDomain;
  readonly #assertTrue: (domain: SimulatedDomain) => void;
  #steps: Step[] = [];
  #disturbed = false;
  #failures = 0;

  /** `assertTrue` is called whenever something happened. */
  constructor(domain: SimulatedDomain, assertTrue = assertPromises) {
    this.#domain = domain;
    this.#assertTrue = assertTrue;
  }

  get idle(): boolean {
    return this.#steps.length === 0;
  }

  /** In the middle of a plan that has no pause of its own, or is past it. */
  get operating(): boolean {
    return !this.idle && !this.#steps.some(({ step }) => step === 'pause');
  }

  /** Something happens in the world, between two steps of the agent. */
  happens(what: string, event: () => void): void {
    this.trace.push(what);
    this.#disturbed = true;
    event();
    this.#assertTrue(this.#domain);
  }

  crash(): void {
    this.#giveUp(0);
    this.#domain.loseAgent();
  }

  /** The next step that asks QEMU or libvirt fails; what is to be recorded and told before it is. */
  loseLibvirt(): void {
    const asking = this.#steps.findIndex(({ step }) => step !== 'record' && step !== 'note');
    if (asking < 0) return;
    this.#failures += 1;
    this.#giveUp(asking);
    this.#domain.memory?.forEach((memory) => memory.failed(null));
  }

  /** The plan was for a QEMU that is gone; what is to be told before the next step that asks it is. */
  loseQemu(): void {
    for (let step = this.#steps[0]; step?.step === 'note'; step = this.#steps[0]) {
      this.#steps.shift();
      this.#execute(step);
    }
    this.#giveUp(0);
  }

  /** Looks, or carries out the next step of what it planned. Answers whether there was anything to do. */
  advance(): boolean {
    const domain = this.#domain;
    domain.startAgent();
    if (domain.qemu === null || domain.record.disks.length === 0) return false;
    if (this.#steps.length === 0) {
      const observation = domain.observe();
      this.#steps = plan(observation);
      this.#disturbed = false;
      assertUnmarkedLast(this.#steps, observation.run === 'running' || observation.run === 'suspended');
      if (this.#steps.length === 0) {
        this.#showStates();
        return false;
      }
      this.trace.push(`  look (${observation.run}): ${this.#steps.map(({ step }) => step).join(', ')}`);
    }
    const step = this.#steps.shift();
    if (step !== undefined) this.#execute(step);
    this.#assertTrue(domain);
    return true;
  }

  /** Looks and acts until there is nothing left to do, or a step fails: everything else waits for that in the protector's queue. */
  turn(): void {
    const failures = this.#failures;
    for (let step = 0; step < maxSteps; step++) if (!this.advance() || this.#failures > failures) return;
    assert.fail(`no end after ${maxSteps} steps`);
  }

  finishPlan(): void {
    while (this.#steps.length > 0) this.advance();
  }

  /** Storage is whole and nobody disturbs: the domain comes to rest, and all is as it was meant. */
  settle(): void {
    const domain = this.#domain;
    for (let look = 0; look < maxLooks; look++) {
      if (this.advance()) {
        this.finishPlan();
        continue;
      }
      const jobs = [...(domain.qemu?.jobs.values() ?? [])];
      const moving = jobs.filter((job) => job.ended === null && (job.todo.size > 0 || !job.ready));
      const waiting = domain.record.disks.filter(({ dev }) => !domain.memoryOf(dev).mayRetry);
      if (moving.length === 0 && waiting.length === 0 && plan(domain.observe()).length === 0) {
        assertSettled(domain);
        return;
      }
      for (const job of moving) domain.qemu?.progress(job);
      for (const { dev } of waiting) domain.memoryOf(dev).mayRetry = true;
      this.#assertTrue(domain);
    }
    assert.fail(`no rest after ${maxLooks} looks`);
  }

  #execute(step: Step): void {
    this.trace.push(`    ${describe(step)}`);
    try {
      executeSimulated(this.#domain, step);
    } catch (error) {
      if (!(error instanceof Failed || error instanceof Refused)) throw error;
      this.trace.push(`      ${error instanceof Failed ? 'fails' : 'is refused'}: ${error.message}`);
      if (error instanceof Refused && !this.#disturbed) throw error;
      this.#failures += 1;
      this.#giveUp(0);
      if ('dev' in step) this.#domain.memoryOf(step.dev).failed(null);
    }
  }

  /** What is left of the plan, from one step on, is not carried out. */
  #giveUp(from: number): void {
    for (const step of this.#steps.splice(from))
      if (step.step === 'seal') this.#domain.copyOf(step.image).disturbed = true;
  }

  /** As the protector does when there is nothing left to do. */
  #showStates(): void {
    const domain = this.#domain;
    const observation = domain.observe();
    for (const disk of observation.disks) {
      const { state } = stateOf(observation, disk, null);
      if (state === 'protected') domain.memoryOf(disk.record.dev).mayRetry = true;
      if (state !== disk.record.state)
        domain.save(withDisk(domain.record, { ...disk.record, state, since: domain.now() }));
    }
  }
}

function describe(step: Step): string {
  const { step: name, ...args } = step;
  if (step.step !== 'record') return `${name} ${JSON.stringify(args)}`;
  const disks = step.record.disks.map(({ dev, primary, mirror, track, intent }) => {
    const current = [...(primary.current ? ['primary'] : []), ...(mirror.current ? ['mirror'] : [])].join('+');
    return `${dev}: current ${current}, track ${track === null ? 'none' : `${track.bitmap} ${track.base}`}, intent ${intent.kind}`;
  });
  return `record ${disks.join('; ')}`;
}

function assertUnmarkedLast(steps: Step[], running: boolean): void {
  const names = steps.map(({ step }) => step);
  const unmark = names.indexOf('unmarkSurgery');
  if (unmark < 0) return;
  const paused = !running || names.includes('pause');
  assert.ok(
    !paused || (names.includes('resume') && names.indexOf('resume') < unmark),
    `the mark is taken away before the resume: ${names.join()}`,
  );
}
