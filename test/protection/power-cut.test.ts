import assert from 'node:assert/strict';
import { imageName } from '../../src/storage/image.ts';
import { heal } from './happenings.ts';
import { assertPromises } from './promises.ts';
import { SimulatedAgent } from './simulated-agent.ts';
import type { SimulatedDomain } from './simulated-domain.ts';
import { cdpStart, virshStart } from './simulated-starts.ts';
import { stories, Telling, type Story } from './stories.ts';

/** What is done after the power is back. Of each pair of words the first is the usual case. */
interface Aftermath {
  /** Which of the definitions that libvirt saved is there again. */
  definition: number;
  /** When the domain is started, by virsh or by libvirt's autostart. */
  agent: 'up' | 'late' | 'late, after another cut';
  storage: 'healed' | 'as it was';
}

class PowerCut extends Error {}

/** What durable states meant, in all stories so far. */
const known = new Set<string>();

describe('a power cut', () => {
  for (const story of stories) {
    it(`at any instant: ${story.name}`, function () {
      this.timeout(60_000);
      for (const instant of instantsThatDiffer(story)) {
        for (const aftermath of aftermathsOf(story, instant)) tellWithCut(story, instant, aftermath);
      }
    });
  }
});

/** Those at which what is durable means something that it did not mean before, in this story or in an earlier one. */
function instantsThatDiffer(story: Story): number[] {
  const instants: number[] = [];
  const telling = new Telling(story, (instant, { domain }) => {
    const meaning = meaningOf(domain);
    if (!known.has(meaning)) instants.push(instant);
    known.add(meaning);
  });
  telling.tell(story);
  return instants;
}

function meaningOf({ kept, definitions, copies, guests, qemu }: SimulatedDomain): string {
  const { record, start } = kept;
  const disks = record.disks.map((disk) => ({
    ...disk,
    since: '',
    layerNames: [],
    exposedSince: disk.exposedSince !== null,
    track: disk.track?.base,
    instance: disk.instance !== null,
    atStop: disk.atStop?.clean,
  }));
  const stored = [...copies.values()].map((copy) => [
    copy.name,
    copy.failing,
    [...guests.values()].map(({ flushed }) => copy.durablyHolds(flushed)),
  ]);
  const named = definitions.map((images) => [...images.values()].map(imageName));
  return JSON.stringify([record.policy, disks, start === record.lastStart, stored, named, qemu === null]);
}

function aftermathsOf(story: Story, at: number): Aftermath[] {
  const { domain } = tellUntil(story, at);
  const broken = [...domain.copies.values()].some(({ failing }) => failing);
  const storages = broken ? (['healed', 'as it was'] as const) : (['healed'] as const);
  return [...domain.definitions.keys()].flatMap((definition) =>
    (['up', 'late', 'late, after another cut'] as const).flatMap((agent) =>
      storages.map((storage) => ({ definition, agent, storage })),
    ),
  );
}

/** What leads there was looked at when the instants were found. */
function tellUntil(story: Story, at: number): Telling {
  const stop = (instant: number): void => {
    if (instant === at) throw new PowerCut();
  };
  const telling = new Telling(story, stop, () => undefined);
  try {
    telling.tell(story);
  } catch (error) {
    if (!(error instanceof PowerCut)) throw error;
  }
  return telling;
}

function tellWithCut(story: Story, at: number, aftermath: Aftermath): void {
  const told = tellUntil(story, at);
  const { domain } = told;
  const trace = told.agent.trace.slice(-30);
  domain.losePower(aftermath.definition);
  try {
    assertPromises(domain);
    if (aftermath.storage === 'healed') heal(domain);
    if (aftermath.agent !== 'up') {
      startAnyhow(domain);
      told.guestWrites();
    }
    if (aftermath.agent === 'late, after another cut') {
      domain.losePower();
      goneForGood(domain, () => startAnyhow(domain));
    }
    domain.startAgent();
    startAnyhow(domain);
    heal(domain);
    startAnyhow(domain);
    const agent = new SimulatedAgent(domain);
    trace.push('power is back', ...agent.trace);
    try {
      agent.settle();
    } finally {
      trace.push(...agent.trace.slice(0, 30));
    }
    domain.shutDown();
    for (const { dev, primary, mirror } of domain.record.disks) {
      const [a, b] = [primary, mirror].map(({ image }) => domain.copyOf(image).content());
      if (primary.current && mirror.current) assert.deepEqual(a, b, `the copies of ${dev} differ`);
    }
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    assert.fail(`${why}\ncut at instant ${at}, ${JSON.stringify(aftermath)}\n${trace.join('\n')}`);
  }
}

/** By virsh, and where that is refused in the way that the message names. What starts has all that the guest was promised. */
function startAnyhow(domain: SimulatedDomain): void {
  if (domain.qemu !== null) return;
  const refusal = virshStart(domain);
  if (refusal !== null) {
    assert.match(refusal, /virt-cdp start web1|systemctl start virt-cdpd|can not be opened/);
    if (domain.memory !== null && domain.record.disks.length > 0) {
      const broken = [...domain.copies.values()].some(({ failing }) => failing);
      const again = cdpStart(domain);
      assert.ok(again === null || broken, `virsh start: ${refusal}; virt-cdp start: ${again ?? ''}`);
    }
  }
  assertHasEverything(domain);
}

function assertHasEverything(domain: SimulatedDomain): void {
  const { qemu } = domain;
  if (qemu === null) return;
  for (const [dev, { acknowledged }] of domain.guests) {
    for (const copy of qemu.copiesUnder(qemu.device(dev).root))
      assert.ok(copy.holds(acknowledged), `the domain was started from ${copy.name}, which lacks acknowledged writes`);
  }
}

/** Tries it with each copy gone that the definition names: then only the others could be started from. */
function goneForGood(domain: SimulatedDomain, attempt: () => void): void {
  const named = [...domain.persistent.values()].map((image) => domain.copyOf(image));
  for (const copy of named) copy.failing = true;
  domain.startAgent();
  attempt();
  if (domain.qemu !== null) return;
  domain.loseAgent();
  for (const copy of named) copy.failing = false;
}
