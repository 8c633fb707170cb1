import assert from 'node:assert/strict';
import type { Policy } from '../../src/domain/declaration.ts';
import type { Engine } from '../../src/graph/engine.ts';
import type { Side } from '../../src/protection/model.ts';
import { newDiskRecord, type Intent } from '../../src/protection/record.ts';
import { parseImageUri, type Image } from '../../src/storage/image.ts';
import { change } from './happenings.ts';
import { assertPromises } from './promises.ts';
import { SimulatedAgent } from './simulated-agent.ts';
import { SimulatedDomain } from './simulated-domain.ts';
import { blockCount } from './simulated-qemu.ts';
import { cdpStart, start } from './simulated-starts.ts';

/** What befalls a domain in one of the usual courses of events. */
export interface Story {
  name: string;
  policy?: Policy;
  engine?: Engine;
  /** The disks that run without the stop policy at first. */
  told?: string[];
  devs?: string[];
  /** Told before the part in which calamities are tried. */
  before?: Act[];
  acts: Act[];
  /** It depends on what an agent remembers: a copy that failed is given up, or tried again. */
  mayEndOtherwise?: true;
}

type Act = (told: Telling) => void;

/** A calmed domain that has not come to rest after so many steps never will. */
const maxSteps = 1_000;

/** One telling of a story, in which something may happen at each instant: between any two steps, whoever makes them. */
export class Telling {
  readonly domain: SimulatedDomain;
  readonly agent: SimulatedAgent;
  readonly #assertTrue: (domain: SimulatedDomain) => void;
  readonly #at: (instant: number, told: Telling) => void;
  /** Null before the part that counts. */
  #instant: number | null = null;
  #block = 0;

  /** `assertTrue` is called whenever something happened. */
  constructor(
    { policy = 'available', engine = 'quorum', devs = ['vda'], told = [] }: Story,
    at: (instant: number, told: Telling) => void,
    assertTrue = assertPromises,
  ) {
    this.domain = new SimulatedDomain(policy, devs, engine, told);
    this.agent = new SimulatedAgent(this.domain, assertTrue);
    this.#at = at;
    this.#assertTrue = assertTrue;
  }

  tell({ before = [], acts }: Story): void {
    for (const act of before) act(this);
    this.#instant = 0;
    this.instant();
    for (const act of acts) {
      act(this);
      this.instant();
    }
  }

  /** The agent and the jobs do what there is to do, and the guest writes all the time, or not. */
  work({ guestWrites }: { guestWrites: boolean }): void {
    const { domain, agent } = this;
    if (guestWrites) this.guestWrites();
    let patience = 3;
    for (let step = 0; step < maxSteps; step++) {
      if (agent.advance()) {
        this.instant();
        if (guestWrites) this.guestWrites();
        continue;
      }
      const jobs = [...(domain.qemu?.jobs.values() ?? [])].filter((job) => job.todo.size > 0 || !job.ready);
      for (const job of jobs) domain.qemu?.progress(job);
      const waiting = domain.record.disks.filter(({ dev }) => !domain.memoryOf(dev).mayRetry);
      if (jobs.length === 0 && (waiting.length === 0 || patience-- === 0)) return;
      for (const { dev } of waiting) domain.memoryOf(dev).mayRetry = true;
      this.instant();
    }
    assert.fail(`no rest after ${maxSteps} steps`);
  }

  /** And flushes: what it was told then, it may rely on. */
  guestWrites(): void {
    const { domain } = this;
    this.#block = (this.#block + 1) % blockCount;
    for (const dev of domain.guests.keys()) {
      domain.guestWrites(dev, this.#block);
      domain.guestFlushes(dev);
    }
    this.#assertTrue(domain);
  }

  instant(): void {
    if (this.#instant !== null) this.#at(this.#instant++, this);
  }
}

const work: Act = (told) => told.work({ guestWrites: true });

/** The guest's firmware takes its time. */
const workBeforeGuest: Act = (told) => told.work({ guestWrites: false });

/** No epoch knows what was written before it. */
const protectsWhatWasWritten: Act[] = [
  (told) => {
    for (let block = 0; block < blockCount; block++) told.guestWrites();
  },
  workBeforeGuest,
];

const fails =
  (image: string): Act =>
  ({ domain }) =>
    void (domain.copyOf(parseImageUri(image)).failing = true);

const heals =
  (image: string): Act =>
  ({ domain }) =>
    void (domain.copyOf(parseImageUri(image)).failing = false);

/** An agent that died in between may not know yet how the copy was closed. */
const isSpoilt =
  (side: Side): Act =>
  ({ domain }) => {
    for (const disk of domain.record.disks) {
      const { image, current, sealed } = disk[side];
      const copy = domain.copyOf(image);
      if (!current && sealed === copy.fingerprint) copy.spoil();
    }
  };

const wants =
  (intent: Intent, dev?: string): Act =>
  ({ domain, agent }) => {
    domain.startAgent();
    agent.turn();
    change(domain, () => intent, dev);
  };

const rebuildTo = (image: Image, original = false): Act => wants({ kind: 'rebuild', to: image, original }, 'vda');

const shutsDown: Act = ({ domain }) => domain.shutDown();

const isKilled: Act = ({ domain }) => domain.stopQemu({ clean: false });

const starts: Act = (told) => {
  const { domain } = told;
  if (!start(domain)) {
    domain.startAgent();
    assert.ok(start(domain), 'the domain starts');
  }
  told.instant();
};

const startsFromCurrentCopy: Act = (told) => {
  told.domain.startAgent();
  assert.equal(cdpStart(told.domain), null);
  told.instant();
};

/** A second disk is protected while the first is. */
const protectsAlso =
  (dev: string): Act =>
  ({ domain }) => {
    const disk = newDiskRecord(
      { dev, mirror: parseImageUri(`/mirror/${dev}`), rebuild: null },
      parseImageUri(`/primary/${dev}`),
      true,
    );
    domain.save({ ...domain.record, disks: [...domain.record.disks, disk] });
  };

const protectsOnly =
  (dev: string): Act =>
  ({ domain }) =>
    domain.save({ ...domain.record, disks: domain.record.disks.filter((disk) => disk.dev === dev) });

const primary = parseImageUri('/primary/vda');
const first = parseImageUri('/new/first');
const second = parseImageUri('/new/second');

const failsOver: Act[] = [fails('/primary/vda'), work];
const failsOverOnRequest: Act[] = [wants({ kind: 'failover' }, 'vda'), work];
const degradesAndArmsAgain: Act[] = [fails('/mirror/vda'), work, heals('/mirror/vda'), work];

const byQuorum: Story[] = [
  { name: 'protect', acts: [work] },
  { name: 'the mirror fails and comes back', before: [work], acts: degradesAndArmsAgain },
  { name: 'the mirror fails and comes back, strict', policy: 'strict', before: [work], acts: degradesAndArmsAgain },
  {
    name: 'the mirror fails twice',
    before: [work],
    acts: [fails('/mirror/vda'), work, heals('/mirror/vda'), work, fails('/mirror/vda'), work],
  },
  { name: 'the primary fails; rebuild', before: [work], acts: [...failsOver, rebuildTo(first), work] },
  {
    name: 'the primary fails, twice, with a rebuild each time',
    before: [work, ...failsOver, rebuildTo(first), work],
    acts: [fails('/new/first'), work, rebuildTo(second), work],
  },
  {
    name: 'failover on request, and back to the original',
    before: [work],
    acts: [...failsOverOnRequest, rebuildTo(primary, true), work],
  },
  {
    name: 'a rebuild is broken off, and made anew elsewhere',
    before: [work, ...failsOver],
    acts: [rebuildTo(first), (told) => told.agent.turn(), fails('/new/first'), work, work, rebuildTo(second), work],
  },
  {
    name: 'the mirror fails during a rebuild',
    mayEndOtherwise: true,
    before: [work, ...failsOver],
    acts: [rebuildTo(first), (told) => told.agent.turn(), fails('/mirror/vda'), work, heals('/mirror/vda'), work, work],
  },
  {
    name: 'hold, and release',
    before: [work],
    acts: [wants({ kind: 'hold' }), work, wants({ kind: 'protect' }), work],
  },
  {
    name: 'somebody writes to the mirror while it is held',
    before: [...protectsWhatWasWritten, wants({ kind: 'hold' }), workBeforeGuest],
    acts: [isSpoilt('mirror'), wants({ kind: 'protect' }), workBeforeGuest],
  },
  {
    name: 'somebody writes to the old primary, and then it is gone back to',
    before: [...protectsWhatWasWritten, wants({ kind: 'failover' }, 'vda'), workBeforeGuest],
    acts: [isSpoilt('primary'), rebuildTo(primary, true), workBeforeGuest],
  },
  { name: 'a full resync', before: [work], acts: [wants({ kind: 'resync' }), work] },
  { name: 'unprotect', before: [work], acts: [wants({ kind: 'remove' }), work] },
  {
    name: 'unprotect after a failover and a way back',
    before: [work, ...failsOverOnRequest, rebuildTo(primary, true), work],
    acts: [wants({ kind: 'remove' }), work],
  },
  {
    name: 'unprotect that keeps the mirror',
    before: [work],
    acts: [...failsOver, wants({ kind: 'remove' }), work],
  },
  { name: 'a start without copying', before: [work], acts: [shutsDown, starts, workBeforeGuest, work] },
  {
    name: 'a start without copying, strict',
    policy: 'strict',
    before: [work],
    acts: [shutsDown, starts, workBeforeGuest, work],
  },
  {
    name: 'a start in which the guest is faster',
    before: [work],
    acts: [shutsDown, starts, work, shutsDown, starts, workBeforeGuest],
  },
  { name: 'a start after QEMU was killed', before: [work], acts: [isKilled, starts, work] },
  { name: 'a start after QEMU was killed, strict', policy: 'strict', before: [work], acts: [isKilled, starts, work] },
  {
    name: 'the primary fails while the domain is stopped; start from the mirror; rebuild',
    before: [work, shutsDown],
    acts: [fails('/primary/vda'), startsFromCurrentCopy, work, rebuildTo(first), work],
  },
  {
    name: 'the guest shuts down and starts while failed over',
    before: [work, ...failsOver],
    acts: [shutsDown, starts, work, rebuildTo(first), work],
  },
  {
    name: 'two disks, of which one fails over and is rebuilt',
    devs: ['vda', 'vdb'],
    before: [work],
    acts: [...failsOver, rebuildTo(first), work],
  },
  {
    name: 'two disks, of which both lose their mirrors',
    devs: ['vda', 'vdb'],
    before: [work],
    acts: [fails('/mirror/vda'), fails('/mirror/vdb'), work, heals('/mirror/vda'), work, heals('/mirror/vdb'), work],
  },
  {
    name: 'two disks, of which both are held; strict',
    devs: ['vda', 'vdb'],
    policy: 'strict',
    before: [work],
    acts: [
      fails('/mirror/vda'),
      work,
      heals('/mirror/vda'),
      work,
      wants({ kind: 'hold' }),
      work,
      wants({ kind: 'protect' }),
      work,
    ],
  },
  {
    name: 'a second disk is protected, and the first no longer',
    devs: ['vda', 'vdb'],
    before: [protectsOnly('vda'), work],
    acts: [protectsAlso('vdb'), work, wants({ kind: 'remove' }, 'vda'), work],
  },
];

const byMirrorJob = byQuorum
  .filter(({ policy }) => policy !== 'strict')
  .map((story): Story => ({ ...story, engine: 'mirror', name: `${story.name}; by a mirror job` }));

/** An error that the guest was told of while no agent listened is past when the next one comes. */
const mayBeForgotten = ({ acts }: Story): boolean => acts.some((act) => act === failsOver[0]);

const withoutStopPolicy = byQuorum
  .filter(({ policy }) => policy !== 'strict')
  .map((story): Story => ({
    ...story,
    told: ['vda'],
    name: `${story.name}; without the stop policy`,
    ...(mayBeForgotten(story) && { mayEndOtherwise: true as const }),
  }));

export const stories = [...byQuorum, ...byMirrorJob, ...withoutStopPolicy];
