import assert from 'node:assert/strict';
import fc from 'fast-check';
import { happen, happening, heal } from '../happenings.ts';
import { SimulatedAgent } from '../simulated-agent.ts';
import { SimulatedDomain } from '../simulated-domain.ts';

const scenario = fc.record({
  policy: fc.constantFrom('available' as const, 'strict' as const),
  devs: fc.constantFrom<string[]>(['vda'], ['vda', 'vdb']),
  protectedAtFirst: fc.boolean(),
  happenings: fc.array(happening, { maxLength: 40, size: 'max' }),
});

type Scenario = typeof scenario extends fc.Arbitrary<infer T> ? T : never;

function live({ policy, devs, protectedAtFirst, happenings }: Scenario): void {
  const domain = new SimulatedDomain(policy, devs);
  const agent = new SimulatedAgent(domain);
  try {
    if (protectedAtFirst) agent.settle();
    agent.trace.length = 0;
    for (const each of happenings) happen(domain, agent, each);
    agent.trace.push('calm: everything heals');
    agent.finishPlan();
    heal(domain);
    domain.start();
    agent.settle();
  } catch (error) {
    assert.fail(
      `${error instanceof Error ? error.message : String(error)}\n${[`policy ${policy}, ${devs.join(' and ')}, ${protectedAtFirst ? 'protected' : 'new'}`, ...shortened(agent.trace)].join('\n')}`,
    );
  }
}

/** A plan that goes in circles is not told to its end. */
function shortened(trace: string[]): string[] {
  return trace.length <= 120 ? trace : [...trace.slice(0, 90), '  ...', ...trace.slice(-20)];
}

describe('plan, whatever happens', () => {
  it('keeps every promise', () => {
    fc.assert(fc.property(scenario, live), {
      numRuns: Number(process.env['FC_RUNS'] ?? 700),
      ...(process.env['FC_SEED'] !== undefined && { seed: Number(process.env['FC_SEED']) }),
    });
  });
});
