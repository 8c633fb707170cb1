import type { Action, ActionArguments, AgentApi, HookAnswer, HookCall } from '../control/api.ts';
import { parseDomain } from '../domain/domain.ts';
import { CdpError } from '../errors.ts';
import type { Host } from '../protection/host.ts';
import type { DomainStatus } from '../protection/model.ts';
import { failover, hold, rebuild, release, resync } from '../protection/moves.ts';
import { protect } from '../protection/protect.ts';
import type { Protector } from '../protection/protector.ts';
import { start } from '../protection/start.ts';
import { staleSource } from '../protection/stale-source.ts';
import { unprotect } from '../protection/unprotect.ts';

/** What was done, for the user, and what they should know besides. */
interface Outcome {
  message: string;
  warnings?: string[];
}

type Carrier<A extends Action> = (host: Host, protector: Protector, args: ActionArguments[A]) => Promise<Outcome>;

const actions: { [A in Exclude<Action, 'protect'>]: Carrier<A> } = {
  unprotect: async (_, protector, args) => {
    await unprotect(protector, args);
    return { message: `${protector.record.name} is no longer protected` };
  },
  hold: async (_, protector) => {
    await hold(protector);
    return { message: `${protector.record.name} is held: its mirror gets no writes, which are tracked instead` };
  },
  release: async (_, protector) => {
    await release(protector);
    return { message: `${protector.record.name} is released` };
  },
  failover: async (_, protector, args) => {
    await failover(protector, args);
    return { message: `${protector.record.name} is moved onto its mirror` };
  },
  rebuild: async (host, protector, args) => {
    await rebuild(host, protector, args);
    return { message: `${protector.record.name}'s rebuild has begun` };
  },
  resync: async (_, protector, args) => {
    await resync(protector, args);
    return { message: `${protector.record.name} is brought up to date` };
  },
  start: async (host, protector, args) => {
    await start(host, protector, args);
    return { message: `${protector.record.name} is started` };
  },
};

/** The agent's side of src/control. */
export function agentApi(host: Host): AgentApi {
  return {
    domains: async (all) => {
      const protectedOnes = host.protectors().map((protector) => protector.status());
      return all ? [...protectedOnes, ...(await undeclared(host, protectedOnes))] : protectedOnes;
    },
    domain: async (name) => (await protectorNamed(host, name)).status(),
    act: async (name, action, args) => {
      const { protector, message, warnings } = await act(host, name, action, args);
      return { message, warnings: warnings ?? [], status: protector.record.disks.length > 0 ? protector.status() : null };
    },
    hook: (call) => answerHook(host, call),
    eventsSince: (since) => host.events.since(since),
    followEvents: (listener) => host.events.follow(listener),
  };
}

async function act<A extends Action>(
  host: Host,
  name: string,
  action: A,
  args: ActionArguments[A],
): Promise<Outcome & { protector: Protector }> {
  if (action === 'protect') {
    const ref = await host.find(name);
    const { protector, warnings } = await protect(host, ref, args as ActionArguments['protect']);
    return { protector, warnings, message: `${ref.name} is declared protected` };
  }
  const protector = await protectorNamed(host, name);
  const carry = actions[action as keyof typeof actions] as Carrier<A>;
  return { protector, ...(await carry(host, protector, args)) };
}

/** By name or UUID from memory, so that it works without libvirt; by id from libvirt. */
async function protectorNamed(host: Host, name: string): Promise<Protector> {
  const known = host.protectors().find(({ record }) => record.name === name || record.uuid === name.toLowerCase());
  const protector = known ?? host.protectorOf((await host.find(name)).uuid);
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
      guarantee: 'strict-ack',
      disks: [],
    }));
}

/** From memory alone: libvirt holds the domain locked while it waits for this. */
function answerHook(host: Host, { operation, domainXml }: HookCall): HookAnswer {
  if (operation !== 'prepare' && operation !== 'start') return { refuse: null };
  const domain = parseDomain(domainXml);
  const message = staleSource(host.protectors().map(({ record }) => record), domain);
  if (message === null) return { refuse: null };
  host.events.append({
    time: new Date().toISOString(),
    domain: domain.name,
    disk: null,
    event: 'start-refused',
    from: null,
    to: null,
    detail: { reason: message },
  });
  return { refuse: { message } };
}
