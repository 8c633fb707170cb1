import assert from 'node:assert/strict';
import fc from 'fast-check';
import { withDisk } from '../../src/protection/plan.ts';
import type { DiskRecord, Intent } from '../../src/protection/record.ts';
import { parseImageUri } from '../../src/storage/image.ts';
import { SimulatedAgent } from './simulated-agent.ts';
import { SimulatedDomain } from './simulated-domain.ts';
import { blockCount } from './simulated-qemu.ts';

type Happening =
  | { what: 'agent goes on'; times: number }
  | { what: 'agent crashes' | 'power fails' | 'domain starts' | 'user suspends' | 'stranger resumes' | 'time passes' | 'XML fails' | 'all heals' | 'events are lost' | 'guest is reset' | 'guest shuts down' }
  | { what: 'guest writes'; disk: number; block: number }
  | { what: 'guest flushes' | 'job goes on' | 'job fails' | 'epoch ages'; disk: number }
  | { what: 'copy fails' | 'copy heals' | 'server loses its cache'; disk: number; side: 'primary' | 'mirror' }
  | { what: 'mirror server crashes'; disk: number }
  | { what: 'hold' | 'release' }
  | { what: 'failover' | 'resync' | 'rebuild to new' | 'rebuild to original' | 'remove'; disk: number };

const disk = fc.nat(1);
const side = fc.constantFrom('primary' as const, 'mirror' as const);
const one = <const W extends string>(...what: W[]): fc.Arbitrary<{ what: W }> => fc.constantFrom(...what).map((name) => ({ what: name }));

const happening: fc.Arbitrary<Happening> = fc.oneof(
  { weight: 14, arbitrary: fc.record({ what: fc.constant('agent goes on' as const), times: fc.integer({ min: 1, max: 16 }) }) },
  { weight: 8, arbitrary: fc.record({ what: fc.constant('guest writes' as const), disk, block: fc.nat(blockCount - 1) }) },
  { weight: 6, arbitrary: fc.record({ what: fc.constantFrom('guest flushes' as const, 'job goes on' as const, 'job goes on' as const, 'job fails' as const, 'epoch ages' as const), disk }) },
  { weight: 5, arbitrary: fc.record({ what: fc.constantFrom('copy fails' as const, 'copy heals' as const, 'server loses its cache' as const), disk, side }) },
  { weight: 4, arbitrary: fc.record({ what: fc.constant('mirror server crashes' as const), disk }) },
  { weight: 3, arbitrary: one('all heals', 'time passes') },
  { weight: 4, arbitrary: one('agent crashes', 'stranger resumes') },
  { weight: 2, arbitrary: one('power fails', 'domain starts', 'domain starts', 'user suspends', 'XML fails', 'events are lost', 'guest is reset', 'guest shuts down') },
  { weight: 1, arbitrary: one('hold', 'release') },
  { weight: 4, arbitrary: fc.record({ what: fc.constantFrom('failover' as const, 'resync' as const, 'rebuild to new' as const, 'rebuild to original' as const, 'remove' as const), disk }) },
);

const scenario = fc.record({
  policy: fc.constantFrom('available' as const, 'strict' as const),
  devs: fc.constantFrom<string[]>(['vda'], ['vda', 'vdb']),
  protectedAtFirst: fc.boolean(),
  happenings: fc.array(happening, { maxLength: 40, size: 'max' }),
});

type Scenario = typeof scenario extends fc.Arbitrary<infer T> ? T : never;

/** A copy may lose what it acknowledged only while another has it, and while somebody can hear of it. */
function mayLose(domain: SimulatedDomain, agent: SimulatedAgent, { dev, primary, mirror }: DiskRecord): boolean {
  const copies = [primary, mirror].map(({ image }) => domain.copyOf(image));
  const onPair = domain.qemu?.nodes.get(domain.qemu.device(dev).root)?.kind === 'quorum';
  return agent.idle && onPair && domain.runs() && primary.current && mirror.current && copies.every((copy) => !copy.failing && !copy.failsOnce && !copy.lostUnseen);
}

function somethingLost(domain: SimulatedDomain, side?: 'primary'): boolean {
  return domain.record.disks.some((disk) => domain.copyOf(disk.primary.image).lostUnseen || (side === undefined && domain.copyOf(disk.mirror.image).lostUnseen));
}

const intents = new Set<Happening['what']>(['hold', 'release', 'failover', 'resync', 'rebuild to new', 'rebuild to original', 'remove']);

function wasReset(domain: SimulatedDomain): boolean {
  return [...domain.guests.values()].some(({ dropped }) => dropped.size > 0);
}

function happen(domain: SimulatedDomain, agent: SimulatedAgent, happening: Happening): void {
  // An administrator's wish waits for the turn that is under way.
  if (intents.has(happening.what) && domain.memory !== null) agent.turn();
  const record = 'disk' in happening ? domain.record.disks[happening.disk] : domain.record.disks[0];
  if (record === undefined) return;
  const { dev } = record;
  const { qemu } = domain;
  const copy = domain.copyOf(record['side' in happening ? happening.side : 'mirror'].image);
  const label = 'disk' in happening ? `${happening.what} (${dev}${'side' in happening ? `, ${happening.side}` : ''}${'block' in happening ? `, block ${happening.block}` : ''})` : happening.what;
  const does = (event: () => void): void => agent.happens(label, event);
  const job = [...(qemu?.jobs.values() ?? [])].find(({ id }) => id.includes(dev));
  switch (happening.what) {
    case 'agent goes on':
      for (let n = 0; n < happening.times; n++) agent.advance();
      return;
    case 'agent crashes':
      return somethingLost(domain, 'primary') || wasReset(domain) ? undefined : does(() => agent.crash());
    case 'power fails':
      return somethingLost(domain) || wasReset(domain) ? undefined : does(() => {
        agent.crash();
        domain.losePower();
      });
    case 'domain starts':
      if (qemu === null) {
        does(() => domain.start());
      }
      return;
    case 'user suspends':
      return agent.operating ? undefined : does(() => domain.stop('user'));
    case 'guest is reset':
      return domain.memory === null || domain.deaf ? undefined : does(() => domain.reset());
    case 'guest shuts down':
      return somethingLost(domain) || !agent.idle ? undefined : does(() => domain.shutDown());
    case 'stranger resumes':
      return domain.paused === null ? undefined : does(() => domain.resume());
    case 'time passes':
      return does(() => domain.memory?.forEach((memory) => (memory.mayRetry = true)));
    case 'XML fails':
      return does(() => (domain.xmlFails = true));
    case 'events are lost':
      return somethingLost(domain, 'primary') ? undefined : does(() => (domain.deaf = !domain.deaf));
    case 'all heals':
      return does(() => heal(domain));
    case 'guest writes':
      return domain.runs() ? does(() => domain.guestWrites(dev, happening.block)) : undefined;
    case 'guest flushes':
      return domain.runs() ? does(() => domain.guestFlushes(dev)) : undefined;
    case 'job goes on':
      return job === undefined ? undefined : does(() => qemu?.progress(job));
    case 'job fails':
      return job === undefined ? undefined : does(() => qemu?.endJob(job, 'target-failed'));
    case 'epoch ages':
      return does(() => qemu?.nodes.get(`cdp-${dev}`)?.bitmaps.forEach((_, name) => domain.agedEpochs.add(name)));
    case 'copy fails':
      return somethingLost(domain) ? undefined : does(() => (copy.failing = true));
    case 'copy heals':
      return does(() => (copy.failing = false));
    case 'server loses its cache':
      if (!mayLose(domain, agent, record) || (happening.side === 'primary' && (domain.deaf || domain.memory === null))) return;
      return does(() => {
        copy.loseUnflushed();
        copy.failsOnce = true;
        copy.lostUnseen = true;
      });
    case 'mirror server crashes':
      if (record.mirror.current && !mayLose(domain, agent, record)) return;
      return does(() => {
        copy.loseUnflushed();
        copy.lostUnseen = record.mirror.current;
        copy.failing = true;
        for (const node of qemu?.nodes.values() ?? []) if (node.copy === copy) node.broken = true;
      });
    case 'hold':
      return domain.record.disks.every(({ primary }) => primary.current) ? intend(domain, agent, label, () => ({ kind: 'hold' })) : undefined;
    case 'release':
      return intend(domain, agent, label, ({ intent }) => (intent.kind === 'hold' ? { kind: 'protect' } : intent));
    case 'failover':
      return record.primary.current && record.mirror.current && qemu !== null ? intend(domain, agent, label, () => ({ kind: 'failover' }), dev) : undefined;
    case 'resync':
      return record.primary.current ? intend(domain, agent, label, () => ({ kind: 'resync' }), dev) : undefined;
    case 'rebuild to new': {
      if (record.primary.current || record.intent.kind === 'rebuild' || qemu === null) return;
      const to = parseImageUri(`/new/${dev}-${record.rebuilds + 1}-${agent.trace.length}`);
      return intend(domain, agent, label, () => ({ kind: 'rebuild', to, original: false }), dev);
    }
    case 'rebuild to original': {
      if (record.primary.current || record.intent.kind === 'rebuild' || qemu === null || domain.copyOf(record.primary.image).failing) return;
      const { graph } = domain.observe().disks.find(({ record: { dev: name } }) => name === dev) ?? {};
      const openedByUs = graph?.layout === 'mirror';
      if (openedByUs && graph?.primary !== null) return;
      return intend(domain, agent, label, () => ({ kind: 'rebuild', to: record.primary.image, original: openedByUs }), dev);
    }
    case 'remove':
      return intend(domain, agent, label, () => ({ kind: 'remove' }), dev);
  }
}

/** A wish is durable at once. */
function intend(domain: SimulatedDomain, agent: SimulatedAgent, label: string, intentOf: (disk: DiskRecord) => Intent, dev?: string): void {
  if (domain.memory === null) return;
  agent.happens(label, () => {
    for (const disk of domain.record.disks) {
      if (dev === undefined || disk.dev === dev) domain.record = withDisk(domain.record, { ...disk, intent: intentOf(disk) });
      domain.memoryOf(disk.dev).mayRetry = true;
    }
  });
}

function heal(domain: SimulatedDomain): void {
  for (const copy of domain.copies.values()) copy.failing = false;
  domain.xmlFails = false;
  domain.deaf = false;
}

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
    assert.fail(`${error instanceof Error ? error.message : String(error)}\n${[`policy ${policy}, ${devs.join(' and ')}, ${protectedAtFirst ? 'protected' : 'new'}`, ...shortened(agent.trace)].join('\n')}`);
  }
}

/** A plan that goes in circles is not told to its end. */
function shortened(trace: string[]): string[] {
  return trace.length <= 120 ? trace : [...trace.slice(0, 90), '  ...', ...trace.slice(-20)];
}

describe('plan, whatever happens', () => {
  it('keeps every promise', () => {
    fc.assert(fc.property(scenario, live), { numRuns: Number(process.env['FC_RUNS'] ?? 1500), ...(process.env['FC_SEED'] !== undefined && { seed: Number(process.env['FC_SEED']) }) });
  });
});
