import { hasStopPolicy, type Domain, type DomainDisk } from '../../domain/domain.ts';
import { withStopPolicy } from '../../domain/edit.ts';
import type { Image } from '../../domain/image.ts';
import { CdpError, errorAndHint } from '../../errors.ts';
import type { DomainRef } from '../../libvirt/types.ts';
import { sameStorage } from '../../storage/image.ts';
import { resolveImage } from '../../storage/tools.ts';
import type { Definition } from '../definitions/definitions.ts';
import type { Host } from '../host.ts';
import type { DiskOf } from '../image-users.ts';
import type { Protector } from '../protector.ts';
import { newDiskRecord, type DiskRecord } from '../record.ts';
import { takeMirror, type MirrorTerms } from '../requests/mirror-checks.ts';
import { staleSource } from '../starts/hook-answer.ts';
import { mirrorOf, type PolicyRule } from './policy-file.ts';

const firstRetryMs = 10_000;
const lastRetryMs = 10 * 60_000;

/** So many domains are looked at at once; their storage may be slow. */
const lanes = 4;

const lookUpDeadlineMs = 30_000;

/** A disk that a rule wants protected, and why it is not. */
export interface Refusal {
  domain: string;
  disk: string | null;
  /** The policy file. */
  file: string;
  why: string;
}

/** What is recorded of a domain that is no more. */
interface Predecessor {
  protector: Protector;
  disk: DiskRecord;
}

interface Task {
  ref: DomainRef;
  busy: boolean;
  /** Something happened to the domain meanwhile. */
  again: boolean;
  failures: number;
  refusals: Refusal[];
  timer: NodeJS.Timeout | undefined;
}

/**
 * Has the domains protected that a policy file fits, as `virt-cdp protect` would, when they are defined, started or found, and again
 * with growing pauses where that is refused. A domain that declares itself, in its metadata, is left to its declaration; a disk
 * that is protected stays so, as recorded, whatever the files say later.
 *
 * INVARIANT: one attempt at a time for one domain; what happens to it meanwhile leads to one more.
 */
export class RuleKeeper {
  readonly #host: Host;
  readonly #ruleFor: (domain: string) => PolicyRule | null;
  readonly #tasks = new Map<string, Task>();
  readonly #waiting: (() => void)[] = [];
  #free = lanes;
  #closed = false;

  constructor(host: Host, ruleFor: (domain: string) => PolicyRule | null) {
    this.#host = host;
    this.#ruleFor = ruleFor;
  }

  get refusals(): Refusal[] {
    return [...this.#tasks.values()].flatMap(({ refusals }) => refusals);
  }

  /** The rules changed: looks at every domain again. */
  async considerAll(): Promise<void> {
    for (const ref of await this.#host.session.client.listDomains({ all: true })) this.consider(ref);
  }

  /** A domain was defined, started, found, or its rule may be another now. */
  consider(ref: DomainRef): void {
    const known = this.#tasks.get(ref.uuid);
    if (known === undefined && this.#ruleFor(ref.name) === null) return;
    const task = known ?? { ref, busy: false, again: false, failures: 0, refusals: [], timer: undefined };
    this.#tasks.set(ref.uuid, task);
    task.ref = ref;
    task.failures = 0;
    this.#attempt(task);
  }

  close(): void {
    this.#closed = true;
    for (const { timer } of this.#tasks.values()) clearTimeout(timer);
  }

  #attempt(task: Task): void {
    clearTimeout(task.timer);
    task.again = task.busy;
    if (task.busy || this.#closed) return;
    task.busy = true;
    void this.#inLane(() => this.#apply(task)).then((refusals) => {
      task.busy = false;
      if (this.#closed) return;
      if (task.again) this.#attempt(task);
      else this.#settle(task, refusals);
    });
  }

  async #inLane<T>(work: () => Promise<T>): Promise<T> {
    if (this.#free === 0) await new Promise<void>((resolve) => this.#waiting.push(resolve));
    else this.#free -= 1;
    try {
      return await work();
    } finally {
      const next = this.#waiting.shift();
      if (next === undefined) this.#free += 1;
      else next();
    }
  }

  #settle(task: Task, refusals: Refusal[]): void {
    const told = task.refusals;
    task.refusals = refusals;
    if (refusals.length === 0) {
      this.#tasks.delete(task.ref.uuid);
      return;
    }
    const againInMs = Math.min(lastRetryMs, firstRetryMs * 2 ** task.failures);
    task.failures += 1;
    task.timer = setTimeout(() => this.#attempt(task), againInMs).unref();
    for (const { disk, file, why } of refusals) {
      if (!told.some((known) => known.disk === disk && known.why === why))
        this.#host.tell(task.ref.name, disk, 'protect-refused', { file, why, againInMs });
    }
  }

  /** What is refused of what the domain's rule wants; nothing if there is no rule for it (any more). */
  async #apply({ ref, refusals: former }: Task): Promise<Refusal[]> {
    const rule = this.#ruleFor(ref.name);
    if (rule === null) return [];
    // Every domain is considered when libvirt is reached.
    if (this.#host.session.state !== 'connected') return former;
    const refusals: Refusal[] = [];
    const attempt = async (disk: string | null, work: () => Promise<void>): Promise<void> => {
      try {
        await work();
      } catch (error) {
        refusals.push({ domain: ref.name, disk, file: rule.file, why: errorAndHint(error) });
      }
    };
    await attempt(null, async () => {
      const definition = await this.#host.definitions.read(ref.uuid);
      if (definition === null) return;
      const { domain } = definition;
      if (domain.declaration !== null || domain.declarationProblem !== null) return;
      const disks = chosenDisks(rule, domain);
      await attempt(null, () => this.#defineStopPolicy(definition, disks));
      for (const disk of disks) await attempt(disk.dev, () => this.#protect(ref, rule, domain, disk));
    });
    return refusals;
  }

  /** QEMU takes it only at a start, so the definition has it as soon as it is seen. */
  async #defineStopPolicy(definition: Definition, disks: DomainDisk[]): Promise<void> {
    const without = disks.filter((disk) => disk.unsupported === null && !hasStopPolicy(disk));
    if (without.length === 0) return;
    const devs = without.map(({ dev }) => dev);
    const edit = (xml: string): string => withStopPolicy(xml, devs);
    await this.#host.definitions.restore(definition, { what: [], declaration: null, edit });
  }

  async #protect(ref: DomainRef, rule: PolicyRule, domain: Domain, disk: DomainDisk): Promise<void> {
    const host = this.#host;
    const { dev, image: primary } = disk;
    const known = host.protectorOf(ref.uuid)?.record.disks.find((one) => one.dev === dev);
    if (known !== undefined) {
      const former = await this.#predecessor(ref, dev, known.primary.image, known.mirror.image);
      if (former !== null) await forget(former);
      return;
    }
    if (rule.mirror === null) return;
    if (primary === null || disk.unsupported !== null) throw new Error(disk.unsupported ?? `${dev} has no image`);
    const stale = staleSource(
      host.protectors().map(({ record }) => record),
      { ...domain, disks: [disk] },
    );
    if (stale !== null) throw new Error(stale);
    const wanted = mirrorOf(rule.mirror, domain.name, dev);
    const former = await this.#predecessor(ref, dev, primary, wanted);
    const declare = async (mirror: Image): Promise<void> => {
      const rebuild = rule.rebuild === null ? null : { ...rule.rebuild, format: primary.format };
      const record = { ...newDiskRecord({ dev, mirror, rebuild }, primary, ref.id >= 0), byRule: true };
      const heir =
        former === null ? record : { ...record, retired: former.disk.retired, rebuilds: former.disk.rebuilds };
      await host.declare(ref, rule.policy, [heir]);
    };
    const terms = { create: rule.create, mayOverwrite: false, mayBeClear: false, heirOf: null };
    const target = { uuid: ref.uuid, dev, primary };
    if (former === null) {
      await this.#take(target, wanted, terms, declare);
      return host.begin(ref);
    }
    const inherited = { ...terms, create: false, mayOverwrite: true, heirOf: former.protector.record.uuid };
    await this.#take(target, wanted, inherited, declare);
    await forget(former);
    await host.begin(ref);
  }

  /** A mirror to be created that is there already is one to be checked. */
  async #take(
    disk: DiskOf & { primary: Image },
    wanted: Image,
    terms: MirrorTerms,
    declare: (mirror: Image) => Promise<void>,
  ): Promise<void> {
    try {
      await takeMirror(this.#host, disk, wanted, terms, declare);
    } catch (error) {
      if (!terms.create || !(error instanceof CdpError) || error.code !== 'image-exists') throw error;
      await takeMirror(this.#host, disk, wanted, { ...terms, create: false }, declare);
    }
  }

  /**
   * A domain of that name, disk and mirror that libvirt no longer knows: a transient one has another UUID each time. Its mirror is
   * this one's, and lacks what this one writes. Where the mirror alone was current, it is not to be overwritten.
   */
  async #predecessor(ref: DomainRef, dev: string, primary: Image, wanted: Image): Promise<Predecessor | null> {
    for (const protector of this.#host.protectors()) {
      const { name, uuid, disks } = protector.record;
      if (name !== ref.name || uuid === ref.uuid || protector.live !== null) continue;
      const mirror = await resolveImage(wanted, { deadlineMs: lookUpDeadlineMs });
      const disk = disks.find(
        (one) =>
          one.dev === dev &&
          one.primary.current &&
          sameStorage(one.primary.image, primary) &&
          sameStorage(one.mirror.image, mirror),
      );
      if (disk !== undefined && (await this.#host.session.client.findByUuid(uuid)) === null) return { protector, disk };
    }
    return null;
  }
}

/** Those that the rule names; without names, all that can be protected, and nothing is said of the others. */
function chosenDisks({ disks }: PolicyRule, domain: Domain): DomainDisk[] {
  if (disks === null) return domain.disks.filter(({ unsupported, image }) => unsupported === null && image !== null);
  return domain.disks.filter(({ dev }) => disks.includes(dev));
}

async function forget({ protector, disk: { dev } }: Predecessor): Promise<void> {
  await protector.amend((record) => {
    const disks = record.disks.filter((one) => one.dev !== dev);
    return { ...record, disks };
  });
}
