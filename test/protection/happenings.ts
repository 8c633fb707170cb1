import fc from 'fast-check';
import { diskNames } from '../../src/graph/names.ts';
import { withDisk } from '../../src/protection/planner/plan.ts';
import type { DiskRecord, Intent } from '../../src/protection/record.ts';
import { parseImageUri } from '../../src/storage/image.ts';
import type { SimulatedAgent } from './simulated-agent.ts';
import type { SimulatedDomain } from './simulated-domain.ts';
import { blockBytes, blockCount } from './simulated-qemu.ts';
import { start } from './simulated-starts.ts';
import { copyJob } from './simulated-steps.ts';

/** What can happen to a domain at any instant, whether it is likely or not. */
export type Happening =
  | { what: 'agent goes on'; times: number }
  | {
      what:
        | 'agent crashes'
        | 'domain starts'
        | 'user suspends'
        | 'stranger resumes'
        | 'save begins'
        | 'save is given up'
        | 'time passes'
        | 'XML fails'
        | 'all heals'
        | 'events are lost'
        | 'guest is reset'
        | 'guest shuts down'
        | 'QEMU is killed';
    }
  | { what: 'power fails'; definitionsLost: number }
  | { what: 'guest writes'; disk: number; block: number }
  | { what: 'guest flushes' | 'job goes on' | 'job fails' | 'epoch ages'; disk: number }
  | {
      what: 'copy fails' | 'copy heals' | 'server loses its cache' | 'stale copy is written to';
      disk: number;
      side: 'primary' | 'mirror';
    }
  | {
      what:
        | 'mirror server crashes'
        | 'mirror server restarts'
        | 'primary is edited'
        | 'disk is unplugged'
        | 'disk is plugged in';
      disk: number;
    }
  | { what: 'verify begins' | 'verify ends' | 'verify finds a difference'; disk: number }
  | { what: 'hold' | 'release' }
  | { what: 'failover' | 'resync' | 'rebuild to new' | 'rebuild to original' | 'remove'; disk: number };

const disk = fc.nat(1);
const side = fc.constantFrom('primary' as const, 'mirror' as const);
const one = <const W extends string>(...what: W[]): fc.Arbitrary<{ what: W }> =>
  fc.constantFrom(...what).map((name) => ({ what: name }));

export const happening: fc.Arbitrary<Happening> = fc.oneof(
  {
    weight: 14,
    arbitrary: fc.record({ what: fc.constant('agent goes on' as const), times: fc.integer({ min: 1, max: 16 }) }),
  },
  {
    weight: 8,
    arbitrary: fc.record({ what: fc.constant('guest writes' as const), disk, block: fc.nat(blockCount - 1) }),
  },
  {
    weight: 6,
    arbitrary: fc.record({
      what: fc.constantFrom(
        'guest flushes' as const,
        'job goes on' as const,
        'job goes on' as const,
        'job fails' as const,
        'epoch ages' as const,
      ),
      disk,
    }),
  },
  {
    weight: 5,
    arbitrary: fc.record({
      what: fc.constantFrom('copy fails' as const, 'copy heals' as const, 'server loses its cache' as const),
      disk,
      side,
    }),
  },
  {
    weight: 6,
    arbitrary: fc.record({
      what: fc.constantFrom('mirror server crashes' as const, 'mirror server restarts' as const),
      disk,
    }),
  },
  {
    weight: 2,
    arbitrary: fc.record({ what: fc.constantFrom('disk is unplugged' as const, 'disk is plugged in' as const), disk }),
  },
  { weight: 1, arbitrary: fc.record({ what: fc.constant('primary is edited' as const), disk }) },
  { weight: 2, arbitrary: fc.record({ what: fc.constant('stale copy is written to' as const), disk, side }) },
  { weight: 3, arbitrary: one('all heals', 'time passes') },
  { weight: 4, arbitrary: one('agent crashes', 'stranger resumes') },
  {
    weight: 2,
    arbitrary: one(
      'domain starts',
      'domain starts',
      'user suspends',
      'XML fails',
      'events are lost',
      'guest is reset',
      'guest shuts down',
      'QEMU is killed',
    ),
  },
  { weight: 1, arbitrary: fc.record({ what: fc.constant('power fails' as const), definitionsLost: fc.nat(3) }) },
  {
    weight: 3,
    arbitrary: fc.record({
      what: fc.constantFrom('verify begins' as const, 'verify ends' as const, 'verify finds a difference' as const),
      disk,
    }),
  },
  { weight: 1, arbitrary: one('hold', 'release') },
  { weight: 2, arbitrary: one('save begins', 'save is given up') },
  {
    weight: 4,
    arbitrary: fc.record({
      what: fc.constantFrom(
        'failover' as const,
        'resync' as const,
        'rebuild to new' as const,
        'rebuild to original' as const,
        'remove' as const,
      ),
      disk,
    }),
  },
);

/**
 * A copy may lose what it acknowledged only while another has it, and while somebody can hear of it: from the next I/O, or from the
 * connection that it lost.
 */
function mayLose(
  domain: SimulatedDomain,
  agent: SimulatedAgent,
  { dev, primary, mirror, intent }: DiskRecord,
): boolean {
  const copies = [primary, mirror].map(({ image }) => domain.copyOf(image));
  const suspected = Object.values(domain.memoryOf(dev).health).some(({ is }) => is === 'failed');
  const onPair = domain.qemu?.devices.get(dev)?.root === diskNames(dev).pair;
  return (
    agent.idle &&
    !domain.migrating &&
    intent.kind === 'protect' &&
    !suspected &&
    onPair &&
    domain.runs() &&
    primary.current &&
    mirror.current &&
    copies.every((copy) => !copy.failing && !copy.failsOnce && !copy.lostUnseen)
  );
}

/** What it lost nothing but the next I/O will tell. */
function somethingHidden(domain: SimulatedDomain): boolean {
  return [...domain.copies.values()].some((copy) => copy.lostUnseen && domain.qemu?.hasLost(copy) !== true);
}

function somethingLost(domain: SimulatedDomain, side?: 'primary'): boolean {
  return domain.record.disks.some(
    (disk) =>
      domain.copyOf(disk.primary.image).lostUnseen ||
      (side === undefined && domain.copyOf(disk.mirror.image).lostUnseen),
  );
}

const wishes = ['hold', 'release', 'failover', 'resync', 'rebuild to new', 'rebuild to original', 'remove'] as const;
type Wish = (typeof wishes)[number];

function wasReset(domain: SimulatedDomain): boolean {
  return [...domain.guests.values()].some(({ dropped }) => dropped.size > 0);
}

/** Lets it happen, if it can happen now. */
export function happen(domain: SimulatedDomain, agent: SimulatedAgent, happening: Happening): void {
  if (happening.what === 'agent goes on') {
    for (let n = 0; n < happening.times; n++) agent.advance();
    return;
  }
  // An administrator's wish waits for the turn that is under way.
  if (wishes.some((wish) => wish === happening.what) && domain.memory !== null) agent.turn();
  const event = eventOf(domain, agent, happening);
  if (event !== null) agent.happens(describe(domain, happening), event);
}

function describe(domain: SimulatedDomain, happening: Happening): string {
  if (!('disk' in happening)) return happening.what;
  const details = [
    domain.record.disks[happening.disk]?.dev,
    ...('side' in happening ? [happening.side] : []),
    ...('block' in happening ? [`block ${happening.block}`] : []),
  ];
  return `${happening.what} (${details.join(', ')})`;
}

type Event = () => void;

/** null: it can't happen now. */
function eventOf(
  domain: SimulatedDomain,
  agent: SimulatedAgent,
  happening: Exclude<Happening, { what: 'agent goes on' }>,
): Event | null {
  const record = domain.record.disks['disk' in happening ? happening.disk : 0];
  if (record === undefined) return null;
  const { dev } = record;
  const { qemu } = domain;
  const copy = domain.copyOf(record['side' in happening ? happening.side : 'mirror'].image);
  const job = [...(qemu?.jobs.values() ?? [])].find(
    ({ id, blocking, ready }) => (blocking === null || !ready) && id.includes(dev),
  );
  const heard = domain.memory !== null && !domain.deaf;
  const only = (possible: boolean, event: Event): Event | null => (possible ? event : null);
  switch (happening.what) {
    case 'agent crashes':
      return only(!somethingLost(domain, 'primary') && !wasReset(domain), () => agent.crash());
    case 'power fails':
      return only(!somethingLost(domain) && !wasReset(domain), () => {
        agent.crash();
        domain.losePower(Math.max(0, domain.definitions.length - 1 - happening.definitionsLost));
      });
    case 'domain starts':
      return only(qemu === null, () => void start(domain));
    case 'user suspends':
      return only(!agent.operating, () => domain.stop('user'));
    case 'guest is reset':
      return only(heard && !somethingLost(domain), () => domain.reset());
    case 'guest shuts down':
      return only(!somethingLost(domain) && agent.idle, () => domain.shutDown());
    case 'QEMU is killed':
      return only(!somethingLost(domain) && !wasReset(domain), () => {
        agent.loseQemu();
        domain.stopQemu({ clean: false });
      });
    case 'primary is edited':
      return only(qemu === null && record.primary.current && !domain.copyOf(record.primary.image).failing, () =>
        domain.editPrimary(dev, record),
      );
    case 'stranger resumes':
      return only(domain.paused !== null, () => domain.resume());
    case 'save begins':
      // A job would abort QEMU then, and is left for the primary without asking that.
      return only(qemu !== null && !somethingHidden(domain), () => (domain.migrating = true));
    case 'save is given up':
      return () => (domain.migrating = false);
    case 'time passes':
      return () => domain.memory?.forEach((memory) => (memory.mayRetry = true));
    case 'XML fails':
      return () => (domain.xmlFails = true);
    case 'events are lost':
      return only(!somethingLost(domain, 'primary'), () => (domain.deaf = !domain.deaf));
    case 'all heals':
      return only(!somethingHidden(domain), () => heal(domain));
    case 'guest writes':
      return only(domain.runs(), () => domain.guestWrites(dev, happening.block));
    case 'guest flushes':
      return only(domain.runs(), () => domain.guestFlushes(dev));
    case 'job goes on':
      return job === undefined ? null : () => qemu?.progress(job);
    case 'job fails':
      return job?.ended !== null ? null : () => qemu?.endJob(job, 'target-failed');
    case 'epoch ages':
      return () => qemu?.nodes.get(`cdp-${dev}`)?.bitmaps.forEach((_, name) => domain.agedEpochs.add(name));
    case 'copy fails':
      return only(!somethingHidden(domain), () => (copy.failing = true));
    case 'copy heals':
      return () => (copy.failing = false);
    case 'server loses its cache':
      return only(mayLose(domain, agent, record) && (happening.side === 'mirror' || heard), () => {
        copy.loseUnflushed();
        copy.failsOnce = true;
        copy.lostUnseen = true;
      });
    case 'stale copy is written to': {
      const known = record['side' in happening ? happening.side : 'mirror'];
      const isOpen = [...(qemu?.nodes.values() ?? [])].some((node) => node.copy === copy);
      // Between the end of QEMU's own writes and the seal nobody can tell.
      const isSealed = known.sealed === copy.fingerprint && agent.idle;
      return only(!known.current && isSealed && !isOpen, () => copy.spoil());
    }
    case 'mirror server crashes':
    case 'mirror server restarts':
      return only(!record.mirror.current || mayLose(domain, agent, record), () => {
        copy.loseUnflushed();
        copy.lostUnseen = record.mirror.current;
        // What it lost the guest had not flushed: as after a power cut, it may be there or not.
        domain.atEnd.delete(dev);
        copy.failing = happening.what === 'mirror server crashes';
        qemu?.loseConnection(copy);
      });
    case 'disk is unplugged':
      // libvirt refuses it during its own copy job; a guest that waits for the disk does not let it go.
      return only(
        qemu?.devices.get(dev)?.ioStatus === 'ok' && job?.id !== copyJob(dev) && !somethingLost(domain, 'primary'),
        () => domain.unplug(dev),
      );
    case 'disk is plugged in':
      // Nobody can know of a disk that was out for so short a time that nobody looked.
      return only(qemu?.devices.has(dev) === false && record.primary.current && !record.mirror.current, () =>
        domain.plug(dev, record.primary.image),
      );
    case 'verify begins':
      return only(domain.memory !== null, () => (domain.memoryOf(dev).verify = { is: 'wanted' }));
    case 'verify ends':
      return only(domain.memory !== null, () => (domain.memoryOf(dev).verify = { is: 'none' }));
    case 'verify finds a difference':
      return only(domain.memoryOf(dev).verify.is === 'taken', () => {
        domain.memoryOf(dev).verify = { is: 'repair', extents: [{ offset: 0, length: blockBytes }] };
      });
    case 'hold':
    case 'release':
    case 'failover':
    case 'resync':
    case 'rebuild to new':
    case 'rebuild to original':
    case 'remove':
      return domain.memory === null ? null : wishOf(domain, agent, happening.what, record);
  }
}

/**
 * What an administrator may ask for, under the conditions of src/protection/moves.ts, and not just when a copy has lost something of which
 * nobody can know.
 */
function wishOf(domain: SimulatedDomain, agent: SimulatedAgent, what: Wish, record: DiskRecord): Event | null {
  const { dev, primary, mirror, intent } = record;
  const running = domain.qemu !== null;
  const intend = (possible: boolean, intentOf: (disk: DiskRecord) => Intent, disk?: string): Event | null =>
    possible && !somethingHidden(domain) ? () => change(domain, intentOf, disk) : null;
  switch (what) {
    case 'hold':
      return intend(
        domain.record.disks.every((disk) => disk.primary.current),
        () => ({ kind: 'hold' }),
      );
    case 'release':
      return intend(true, (disk) => (disk.intent.kind === 'hold' ? { kind: 'protect' } : disk.intent));
    case 'failover':
      return intend(primary.current && mirror.current && running, () => ({ kind: 'failover' }), dev);
    case 'resync':
      return intend(primary.current, () => ({ kind: 'resync' }), dev);
    case 'rebuild to new': {
      const to = parseImageUri(`/new/${dev}-${agent.trace.length}`);
      return intend(
        !primary.current && intent.kind !== 'rebuild' && running,
        () => ({ kind: 'rebuild', to, original: false }),
        dev,
      );
    }
    case 'rebuild to original': {
      if (primary.current || intent.kind === 'rebuild' || !running || domain.copyOf(primary.image).failing) return null;
      const { graph } = domain.observe().disks.find((disk) => disk.record.dev === dev) ?? {};
      const openedByUs = graph?.layout === 'mirror';
      return intend(
        !openedByUs || graph.primary === null,
        () => ({ kind: 'rebuild', to: primary.image, original: openedByUs }),
        dev,
      );
    }
    case 'remove':
      return intend(true, () => ({ kind: 'remove' }), dev);
  }
}

/** A wish is durable at once, and ends every back-off. */
export function change(domain: SimulatedDomain, intentOf: (disk: DiskRecord) => Intent, dev?: string): void {
  for (const disk of domain.record.disks) {
    if (dev === undefined || disk.dev === dev)
      domain.save(withDisk(domain.record, { ...disk, intent: intentOf(disk) }));
    domain.memoryOf(disk.dev).succeeded();
  }
}

export function heal(domain: SimulatedDomain): void {
  for (const copy of domain.copies.values()) copy.failing = false;
  domain.xmlFails = false;
  domain.deaf = false;
  domain.migrating = false;
}
