import type { Action, ActionArguments, AgentApi, AgentReport, ArrivalMessages } from '../control/api.ts';
import { CdpError, UsageError } from '../errors.ts';
import { LibvirtError } from '../libvirt/errors.ts';
import type { Host } from '../protection/host.ts';
import type { DiskVerdict, DomainStatus } from '../protection/model.ts';
import { failover, hold, rebuild, release, resync } from '../protection/requests/moves.ts';
import { protect } from '../protection/requests/protect.ts';
import type { Protector } from '../protection/protector.ts';
import type { PolicyFolder } from '../protection/rules/policy-folder.ts';
import type { RuleKeeper } from '../protection/rules/rule-keeper.ts';
import { migrate } from './migrate.ts';
import { start } from '../protection/requests/start.ts';
import { verify } from '../protection/requests/verify.ts';
import { unprotect } from '../protection/requests/unprotect.ts';
import { createMetrics } from './metrics.ts';

/** What was done, for the user, and what they should know besides. */
interface Outcome {
  protector: Protector;
  message: string;
  warnings: string[];
  verdicts?: DiskVerdict[];
}

type Carriers = { [A in Action]: (host: Host, name: string, args: ActionArguments[A]) => Promise<Outcome> };

const carriers: Carriers = {
  protect: async (host, name, args) => {
    const ref = await host.find(name);
    host.unreadable.requireReadable(ref.uuid);
    const { protector, warnings, pausedMs } = await protect(host, ref, args);
    const paused =
      pausedMs === null ? '' : `; its guest stood still for ${(pausedMs / 1000).toFixed(1)} s, and was not rebooted`;
    return { protector, warnings, message: `${ref.name} is declared protected${paused}` };
  },
  unprotect: onProtected(unprotect, (name) => `${name} is no longer protected`),
  hold: onProtected(hold, (name) => `${name} is held: its mirror gets no writes, which are tracked instead`),
  release: onProtected(release, (name) => `${name} is released`),
  failover: onProtected(failover, (name) => `${name} is being moved onto its mirror`),
  rebuild: onProtected(rebuild, (name) => `${name}'s rebuild has begun`),
  resync: onProtected(resync, (name) => `${name} is being brought up to date`),
  start: onProtected(start, (name) => `${name} is started`),
  verify: async (host, name, args) => {
    const protector = await protectorNamed(host, name);
    await host.looked(protector.record.uuid);
    const verdicts = await verify(protector, args, host);
    const differ = verdicts.some(({ differences }) => differences.length > 0);
    const message = `${protector.record.name}: the copies ${differ ? 'differ' : 'are identical'}`;
    return { protector, message, warnings: [], verdicts };
  },
  migrate: async (host, name, args) => {
    const protector = await protectorNamed(host, name);
    await host.looked(protector.record.uuid);
    return { protector, ...(await migrate(protector, args, host)) };
  },
};

/** What other hosts' agents say of domains that come here. */
const hear: {
  [M in keyof ArrivalMessages]: (host: Host, args: ArrivalMessages[M]) => Promise<DomainStatus | null>;
} = {
  expect: async ({ arrivals }, { ticket, record }) => {
    await arrivals.expect(ticket, record);
    return null;
  },
  handOver: async (host, { ticket, identical }) => (await host.arrivals.handOver(ticket, identical)).status(),
  cancel: async ({ arrivals }, { ticket }) => {
    await arrivals.cancel(ticket);
    return null;
  },
};

function onProtected<Args>(
  move: (protector: Protector, args: Args, host: Host) => Promise<void>,
  message: (domain: string) => string,
): (host: Host, name: string, args: Args) => Promise<Outcome> {
  return async (host, name, args) => {
    const protector = await protectorNamed(host, name);
    await host.looked(protector.record.uuid);
    await move(protector, args, host);
    return { protector, message: message(protector.record.name), warnings: [] };
  };
}

/** The agent's side of src/control. */
export function agentApi(host: Host, policies: PolicyFolder, rules: RuleKeeper, agent: () => AgentReport): AgentApi {
  const metrics = createMetrics({
    domains: () => Promise.resolve(protectedDomains(host)),
    agent,
    overdueCalls: () => host.session.overdueCalls,
    backends: () => host.backends(),
    brokenPolicyFiles: () => policies.files.filter(({ problem }) => problem !== null).length,
    followEvents: (listener) => host.events.follow(listener),
  });
  return {
    agent,
    metrics: async () => ({ contentType: metrics.contentType, text: await metrics.text() }),
    domains: async (all) => {
      const protectedOnes = protectedDomains(host);
      return all ? [...protectedOnes, ...(await undeclared(host, protectedOnes))] : protectedOnes;
    },
    domain: async (name) => unreadableNamed(host, name) ?? (await protectorNamed(host, name)).status(blindness(host)),
    act: async (name, action, args) => {
      await host.reached();
      if (action === 'unprotect') await requireNoRule(host, policies, name);
      const { protector, message, warnings, verdicts } = await carriers[action](host, name, args).catch(tellLibvirts);
      const status = protector.record.disks.length > 0 ? protector.status() : null;
      return { message, warnings, status, ...(verdicts !== undefined && { verdicts }) };
    },
    policies: () => ({ folder: policies.folder, files: policies.files, refusals: rules.refusals }),
    hook: ({ operation, domainXml }) => host.answerHook(operation, domainXml),
    arrival: (message, args) => hear[message](host, args),
    eventsSince: (since) => host.events.since(since),
    followEvents: (listener) => host.events.follow(listener),
  };
}

function protectedDomains(host: Host): DomainStatus[] {
  const served = host.protectors().map((protector) => protector.status(blindness(host)));
  return [...served, ...host.unreadable.statuses()].sort((a, b) => a.domain.localeCompare(b.domain));
}

function unreadableNamed(host: Host, name: string): DomainStatus | undefined {
  return host.unreadable.statuses().find(({ domain, uuid }) => domain === name || uuid === name.toLowerCase());
}

/** What libvirt refuses it says in words for users. */
function tellLibvirts(error: unknown): never {
  if (!(error instanceof LibvirtError)) throw error;
  throw new CdpError({ code: 'libvirt-refused', message: `libvirt refused: ${error.text}`, cause: error });
}

function blindness(host: Host): string | null {
  return host.session.state === 'connected' ? null : 'libvirt does not answer';
}

/** What a rule protects would be protected again at once. */
async function requireNoRule(host: Host, policies: PolicyFolder, name: string): Promise<void> {
  const { record } = await protectorNamed(host, name);
  const rule = policies.ruleFor(record.name);
  if (rule === null || !record.disks.some(({ dev }) => rule.mirror !== null && (rule.disks?.includes(dev) ?? true)))
    return;
  throw new UsageError({
    code: 'rule-protects',
    message: `${record.name} is protected by the policy file ${rule.file}`,
    hint: `change that file, or put one before it that excludes the domain: domains = ["${record.name}"], disks = []`,
  });
}

/** By name or UUID from memory, so that it works without libvirt; by id from libvirt. */
async function protectorNamed(host: Host, name: string): Promise<Protector> {
  const named = host.protectors().filter(({ record }) => record.name === name || record.uuid === name.toLowerCase());
  const known = named.find(({ gone }) => !gone) ?? named[0];
  if (known !== undefined) return known;
  const uuid = unreadableNamed(host, name)?.uuid ?? (await host.find(name)).uuid;
  host.unreadable.requireReadable(uuid);
  const protector = host.protectorOf(uuid);
  if (protector !== null) return protector;
  throw new CdpError({
    code: 'no-such-protected-domain',
    message: `the domain '${name}' is not protected`,
    hint: `virt-cdp protect ${name} --disk DEV --mirror URI`,
  });
}

async function undeclared(host: Host, known: DomainStatus[]): Promise<DomainStatus[]> {
  const refs = await host.session.client.listDomains({ all: true });
  return refs
    .filter(({ uuid }) => !known.some((status) => status.uuid === uuid))
    .map(({ name, uuid, id }) => ({
      domain: name,
      uuid,
      running: id >= 0,
      state: 'stopped',
      policy: 'available',
      engine: 'quorum',
      guarantee: 'none',
      disks: [],
    }));
}
