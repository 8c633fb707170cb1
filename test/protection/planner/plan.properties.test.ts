import assert from 'node:assert/strict';
import fc from 'fast-check';
import type { Policy } from '../../../src/domain/declaration.ts';
import type { Engine } from '../../../src/graph/engine.ts';
import { happen, happening, heal, type Happening } from '../happenings.ts';
import { SimulatedAgent } from '../simulated-agent.ts';
import { SimulatedDomain } from '../simulated-domain.ts';
import { start } from '../simulated-starts.ts';

interface Kind {
  policy: Policy;
  engine: Engine;
  /** The disks without the stop policy. */
  told?: string[];
}

const available: Kind = { policy: 'available', engine: 'quorum' };
const withoutStopPolicy: Kind = { policy: 'available', engine: 'mirror', told: ['vda', 'vdb'] };

const scenario = fc.record({
  kind: fc.constantFrom<Kind[]>(
    available,
    { policy: 'strict', engine: 'quorum' },
    { policy: 'available', engine: 'mirror' },
    { policy: 'available', engine: 'quorum', told: ['vda'] },
    withoutStopPolicy,
  ),
  devs: fc.constantFrom<string[]>(['vda'], ['vda', 'vdb']),
  protectedAtFirst: fc.boolean(),
  happenings: fc.array(happening, { maxLength: 40, size: 'max' }),
});

/** A sync begins before the guest's first write; random scenarios seldom come to that. */
const crash: Happening[] = [
  { what: 'guest writes', disk: 0, block: 1 },
  { what: 'QEMU is killed' },
  { what: 'domain starts' },
];

type Scenario = typeof scenario extends fc.Arbitrary<infer T> ? T : never;

/** Stories that random ones seldom come to. */
const known: Scenario[] = [
  // A stop flushes a first copy onto a mirror whose server has just crashed.
  {
    kind: withoutStopPolicy,
    devs: ['vda', 'vdb'],
    protectedAtFirst: false,
    happenings: [
      { what: 'failover', disk: 0 },
      { what: 'job fails', disk: 0 },
      { what: 'job goes on', disk: 1 },
      { what: 'guest writes', disk: 1, block: 0 },
      { what: 'release' },
      { what: 'mirror server crashes', disk: 1 },
    ],
  },
  // The persistent XML names the mirror already when somebody resumes the guest on the pair.
  {
    kind: withoutStopPolicy,
    devs: ['vda'],
    protectedAtFirst: true,
    happenings: [
      { what: 'failover', disk: 0 },
      { what: 'agent goes on', times: 3 },
      { what: 'stranger resumes' },
      { what: 'remove', disk: 0 },
    ],
  },
  // A save begins when the record has left a primary that lost writes, and the device has not.
  {
    kind: withoutStopPolicy,
    devs: ['vda'],
    protectedAtFirst: true,
    happenings: [
      { what: 'guest writes', disk: 0, block: 0 },
      { what: 'server loses its cache', disk: 0, side: 'primary' },
      { what: 'guest writes', disk: 0, block: 1 },
      { what: 'agent goes on', times: 8 },
      { what: 'agent crashes' },
      { what: 'save begins' },
      { what: 'agent goes on', times: 2 },
    ],
  },
  // An agent dies before it names the mirror in the persistent XML, and the disk is gone when another could.
  {
    kind: withoutStopPolicy,
    devs: ['vda'],
    protectedAtFirst: true,
    happenings: [
      { what: 'failover', disk: 0 },
      { what: 'agent goes on', times: 7 },
      { what: 'agent crashes' },
      { what: 'disk is unplugged', disk: 0 },
    ],
  },
  // A stranger has changed the mirror of a domain that ended in order.
  {
    kind: available,
    devs: ['vda'],
    protectedAtFirst: true,
    happenings: [
      { what: 'guest writes', disk: 0, block: 0 },
      { what: 'guest shuts down' },
      { what: 'domain starts' },
      { what: 'stale copy is written to', disk: 0, side: 'mirror' },
    ],
  },
  // The target of a LUN is restarted in the middle of a full sync, and libiscsi has another connection before anybody asks.
  {
    kind: available,
    devs: ['vda', 'vdb'],
    protectedAtFirst: false,
    happenings: [
      { what: 'guest writes', disk: 1, block: 0 },
      { what: 'agent goes on', times: 10 },
      { what: 'job goes on', disk: 1 },
      { what: 'mirror server restarts', disk: 1 },
    ],
  },
];

function live({ kind: { policy, engine, told = [] }, devs, protectedAtFirst, happenings }: Scenario): void {
  const domain = new SimulatedDomain(policy, devs, engine, told);
  const agent = new SimulatedAgent(domain);
  try {
    if (protectedAtFirst) agent.settle();
    agent.trace.length = 0;
    for (const each of happenings) happen(domain, agent, each);
    agent.trace.push('calm: everything heals');
    agent.finishPlan();
    heal(domain);
    domain.startAgent();
    if (domain.qemu === null) start(domain);
    agent.settle();
  } catch (error) {
    assert.fail(
      `${error instanceof Error ? error.message : String(error)}\n${[`policy ${policy}, engine ${engine}, without the stop policy: ${told.join() || 'none'}, ${devs.join(' and ')}, ${protectedAtFirst ? 'protected' : 'new'}`, ...shortened(agent.trace)].join('\n')}`,
    );
  }
}

/** A plan that goes in circles is not told to its end. */
function shortened(trace: string[]): string[] {
  return trace.length <= 120 ? trace : [...trace.slice(0, 90), '  ...', ...trace.slice(-20)];
}

const numRuns = Number(process.env['FC_RUNS'] ?? 700);
const seed = process.env['FC_SEED'];
const settings = { numRuns, ...(seed !== undefined && { seed: Number(seed) }) };

describe('plan, whatever happens', function () {
  this.timeout(60_000);
  it('keeps every promise', () => {
    fc.assert(fc.property(scenario, live), { ...settings, examples: known.map((story) => [story]) });
  });

  it('keeps every promise after a crash of QEMU', () => {
    const looks = fc.integer({ min: 8, max: 16 });
    fc.assert(
      fc.property(scenario, looks, ({ happenings, ...rest }, times) =>
        live({
          ...rest,
          protectedAtFirst: true,
          happenings: [...crash, { what: 'agent goes on', times }, ...happenings],
        }),
      ),
      settings,
    );
  });
});
