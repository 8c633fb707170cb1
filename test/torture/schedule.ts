import type { Side } from '../../src/protection/model.ts';
import { Random } from './random.ts';
import type { DomainShape } from './shape.ts';

/** How a copy's server fails: for good, until it is mended. */
export const faults = ['errors', 'write-errors', 'read-errors', 'dead', 'hung'] as const;
export type Fault = (typeof faults)[number];

interface OfDomain {
  domain: string;
}

interface OfDisk extends OfDomain {
  dev: string;
}

interface OfCopy extends OfDisk {
  side: Side;
}

/** Every deed of the torture, with its arguments. Deeds are data: deeds.ts has exactly one function for each. */
export interface DeedArguments {
  breakCopy: OfCopy & { fault: Fault };
  mendCopy: OfCopy;
  /** The server is killed and comes back at once, without what it had not flushed. */
  crashServer: OfCopy;
  hang: OfCopy & { ms: number };
  killAgent: { downMs: number };
  stopAgent: { downMs: number };
  restartLibvirtd: { signal: 'SIGKILL' | 'SIGTERM'; downMs: number };
  killQemu: OfDomain;
  suspend: OfDomain;
  resume: OfDomain;
  qmpStop: OfDomain;
  qmpCont: OfDomain;
  reset: OfDomain;
  destroy: OfDomain;
  shutDown: OfDomain;
  managedSave: OfDomain;
  saveAndRestore: OfDomain;
  snapshot: OfDomain;
  blockCommit: OfDisk;
  blockCopy: OfDisk;
  beginBackup: OfDomain;
  endBackup: OfDomain;
  /** Defines the XML that the domain had when the run began. */
  defineOldXml: OfDomain;
  plugAndUnplug: OfDomain;
  start: OfDomain & { by: 'virsh' | 'virt-cdp' };
  hold: OfDomain;
  release: OfDomain;
  failOver: OfDisk;
  rebuild: OfDisk & { to: 'new' | 'original' };
  resync: OfDomain & { full: boolean };
  /** 0 is unlimited. */
  verify: OfDomain & { maxBytesPerS: number };
  reprotect: OfDisk;
  /** Mends everything that is in force, waits until all disks are protected, and compares their copies. */
  settle: { rebuildTo: 'new' | 'original' };
}

export type DeedName = keyof DeedArguments;
export type Deed = { [Name in DeedName]: { deed: Name } & DeedArguments[Name] }[DeedName];

export interface Step {
  number: number;
  /** How long nothing is done before it. */
  gapMs: number;
  /** The next step waits for its end, and the promises are checked in between. */
  waits: boolean;
  deed: Deed;
}

/** What the schedule believes to be in force. The truth may differ: a deed may have been refused. */
class Beliefs {
  readonly faults = new Map<string, Fault>();
  readonly off = new Set<string>();
  readonly suspended = new Set<string>();
  readonly held = new Set<string>();
  readonly backups = new Set<string>();
  readonly snapshots = new Set<string>();
  /** Domains with a disk that may run on its mirror. */
  readonly failedOver = new Set<string>();

  faultOf({ domain, dev, side }: OfCopy): Fault | undefined {
    return this.faults.get(`${domain}/${dev}/${side}`);
  }

  follow(deed: Deed): void {
    // eslint-disable-next-line @typescript-eslint/switch-exhaustiveness-check -- most deeds leave nothing in force
    switch (deed.deed) {
      case 'breakCopy':
        this.faults.set(`${deed.domain}/${deed.dev}/${deed.side}`, deed.fault);
        if (deed.side === 'primary') this.failedOver.add(deed.domain);
        break;
      case 'failOver':
        this.failedOver.add(deed.domain);
        break;
      case 'rebuild':
        this.failedOver.delete(deed.domain);
        break;
      case 'snapshot':
        this.snapshots.add(deed.domain);
        break;
      case 'blockCommit':
        this.snapshots.delete(deed.domain);
        break;
      case 'mendCopy':
      case 'crashServer':
        this.faults.delete(`${deed.domain}/${deed.dev}/${deed.side}`);
        break;
      case 'killQemu':
      case 'destroy':
      case 'shutDown':
      case 'managedSave':
        this.off.add(deed.domain);
        this.suspended.delete(deed.domain);
        this.backups.delete(deed.domain);
        break;
      case 'start':
        this.off.delete(deed.domain);
        break;
      case 'suspend':
      case 'qmpStop':
        this.suspended.add(deed.domain);
        break;
      case 'resume':
      case 'qmpCont':
        this.suspended.delete(deed.domain);
        break;
      case 'hold':
        this.held.add(deed.domain);
        break;
      case 'release':
        this.held.delete(deed.domain);
        break;
      case 'beginBackup':
        this.backups.add(deed.domain);
        break;
      case 'endBackup':
        this.backups.delete(deed.domain);
        break;
      case 'settle':
        for (const belief of [this.faults, this.off, this.suspended, this.held, this.backups, this.failedOver])
          belief.clear();
        break;
      default:
    }
  }
}

/** The steps of a run, without end: rounds of some deeds, each of which ends with everything mended. The seed alone determines them. */
export function* schedule(seed: number, domains: readonly DomainShape[]): Generator<Step, never> {
  const random = new Random(seed);
  const beliefs = new Beliefs();
  let number = 0;
  for (;;) {
    const deeds = random.between(3, 8);
    // Deeds meet each other where most are done to one domain.
    const focus = random.pick(domains);
    for (let n = 0; n < deeds; n++) {
      const deed = nextDeed(random, beliefs, random.chance(0.7) ? focus : random.pick(domains));
      beliefs.follow(deed);
      const gapMs = random.chance(0.4) ? random.between(0, 100) : random.between(100, 1500);
      yield { number: ++number, gapMs, waits: n === deeds - 1 || random.chance(0.6), deed };
    }
    const settle: Deed = { deed: 'settle', rebuildTo: random.pick(['new', 'original']) };
    beliefs.follow(settle);
    yield { number: ++number, gapMs: random.between(0, 1000), waits: true, deed: settle };
  }
}

function nextDeed(random: Random, beliefs: Beliefs, shape: DomainShape): Deed {
  const domain = shape.name;
  const { dev } = random.pick(shape.disks);
  const side = random.pick(['primary', 'mirror'] as const);
  const other = side === 'primary' ? 'mirror' : 'primary';
  const copy = { domain, dev, side };
  const broken = beliefs.faultOf(copy) !== undefined;
  // Both copies at once is rare: then the guest can only wait.
  const otherBroken = beliefs.faultOf({ ...copy, side: other }) !== undefined;
  const off = beliefs.off.has(domain);
  const suspended = beliefs.suspended.has(domain);
  const held = beliefs.held.has(domain);
  const backup = beliefs.backups.has(domain);
  const snapshot = beliefs.snapshots.has(domain);
  const failedOver = beliefs.failedOver.has(domain);
  const choices: [weight: number, deed: Deed][] = [
    [broken ? 0 : otherBroken ? 2 : 16, { deed: 'breakCopy', ...copy, fault: random.pick(faults) }],
    [broken ? 12 : 0, { deed: 'mendCopy', ...copy }],
    [broken ? 2 : 5, { deed: 'crashServer', ...copy }],
    [broken ? 0 : 4, { deed: 'hang', ...copy, ms: random.between(300, 4000) }],
    [4, { deed: 'killAgent', downMs: random.between(0, 2000) }],
    [1, { deed: 'stopAgent', downMs: random.between(0, 2000) }],
    [3, { deed: 'restartLibvirtd', signal: random.pick(['SIGKILL', 'SIGTERM']), downMs: random.between(0, 1500) }],
    [off ? 20 : 0, { deed: 'start', domain, by: random.pick(['virsh', 'virsh', 'virt-cdp']) }],
    [suspended ? 12 : 0, { deed: 'resume', domain }],
    [suspended ? 4 : 0, { deed: 'qmpCont', domain }],
    [held ? 12 : 0, { deed: 'release', domain }],
    [backup ? 12 : 0, { deed: 'endBackup', domain }],
  ];
  if (!off) {
    choices.push(
      [3, { deed: 'killQemu', domain }],
      [suspended ? 0 : 3, { deed: 'suspend', domain }],
      [suspended ? 0 : 2, { deed: 'qmpStop', domain }],
      [2, { deed: 'reset', domain }],
      [2, { deed: 'destroy', domain }],
      [suspended ? 0 : 2, { deed: 'shutDown', domain }],
      [2, { deed: 'managedSave', domain }],
      [2, { deed: 'saveAndRestore', domain }],
      [4, { deed: 'snapshot', domain }],
      [snapshot ? (held ? 16 : 4) : 1, { deed: 'blockCommit', domain, dev }],
      [held ? 3 : 1, { deed: 'blockCopy', domain, dev }],
      [backup ? 0 : 3, { deed: 'beginBackup', domain }],
      [1, { deed: 'plugAndUnplug', domain }],
      [held || failedOver ? 0 : snapshot ? 8 : 3, { deed: 'hold', domain }],
      [failedOver ? 1 : 5, { deed: 'failOver', domain, dev }],
      [failedOver ? 14 : 1, { deed: 'rebuild', domain, dev, to: random.pick(['new', 'original']) }],
      [failedOver ? 1 : 3, { deed: 'resync', domain, full: random.chance(0.5) }],
      [failedOver ? 1 : 5, { deed: 'verify', domain, maxBytesPerS: random.pick([0, 4 << 20]) }],
    );
  }
  choices.push([2, { deed: 'reprotect', domain, dev }], [off ? 6 : 2, { deed: 'defineOldXml', domain }]);
  return random.pickWeighted(choices);
}

/** A deed in one line: `breakCopy web vda mirror dead`. */
export function deedText({ deed, ...args }: Deed): string {
  return [deed, ...Object.values(args).map(String)].join(' ');
}
