import { randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import type { ActionArguments } from '../control/api.ts';
import { AgentClient, migrationMs } from '../control/client.ts';
import { CdpError, errorText, RefusedError, UsageError } from '../errors.ts';
import { socketUri } from '../libvirt/uri.ts';
import type { Host } from '../protection/host.ts';
import type { DomainStatus } from '../protection/model.ts';
import type { Protector } from '../protection/protector.ts';
import { runTool } from '../storage/run-tool.ts';

/** libvirt tells of the domain's end here about when virsh ends. */
const departureMs = 10_000;
const resumeMs = 30_000;

/** Options of virsh with which the domain that arrives is not the one that left, or its guest runs there before it has left. */
const refusedOptions =
  /^--(offline|postcopy.*|copy-storage.*|migrate-disks.*|dname|xml|persistent-xml|domain|desturi|suspend)(=|$)/;

/**
 * Moves a protected domain live to another host. It stays on both copies up to its last write here, arrives paused, and goes on when the
 * destination's agent has armed it without copying (docs/decisions/migration.md).
 */
export async function migrate(
  protector: Protector,
  { to, destSocket, unprotected, options = [] }: ActionArguments['migrate'],
  host: Host,
): Promise<{ message: string; warnings: string[] }> {
  const { record } = protector;
  const { name, uuid } = record;
  requireOptions(options);
  requireProtected(protector);
  const destination = destSocket === undefined ? null : new AgentClient({ socketPath: destSocket });
  if (destination === null && unprotected !== true) throw noAgent();
  const ticket = randomUUID();
  await destination?.arrival('expect', { ticket, record });

  const departure = protector.departure();
  const virsh = ['--quiet', '--connect', socketUri(host.session.socketPath), 'migrate', '--live', '--suspend'];
  const args = [...virsh, '--domain', uuid, '--desturi', to, ...options];
  const outcome = await runTool('virsh', args, { deadlineMs: migrationMs });
  const gone = outcome.status === 0 || protector.live === null;
  if (!gone) {
    await destination?.arrival('cancel', { ticket }).catch(() => undefined);
    throw new CdpError({
      code: 'migration-failed',
      message: `${name} did not migrate: ${outcome.stderr.trim()}`,
      hint: `it runs here as before: virt-cdp status ${name}`,
    });
  }
  const identical = await Promise.race([departure, sleep(departureMs, [], { ref: false })]);
  if (destination === null) {
    await resumeThere(name, uuid, to);
    return { message: `${name} runs on ${to}, unprotected`, warnings: [] };
  }
  try {
    return verdict(name, to, await destination.arrival('handOver', { ticket, identical }));
  } catch (error) {
    await resumeThere(name, uuid, to);
    return {
      message: `${name} runs on ${to}`,
      warnings: [`the agent there does not protect it yet: ${errorText(error)}`],
    };
  }
}

function verdict(name: string, to: string, there: DomainStatus | null): { message: string; warnings: string[] } {
  if (there?.state === 'protected') return { message: `${name} runs on ${to}, protected`, warnings: [] };
  const why = there?.disks.find(({ state }) => state === there.state)?.reason ?? 'its mirror is brought up to date';
  return { message: `${name} runs on ${to}`, warnings: [`it is ${there?.state ?? 'unprotected'} there: ${why}`] };
}

/** Its agent would have let the guest go on; harmless if it has. */
async function resumeThere(name: string, uuid: string, to: string): Promise<void> {
  const { status, stderr } = await runTool('virsh', ['--quiet', '--connect', to, 'resume', uuid], {
    deadlineMs: resumeMs,
  });
  if (status === 0 || stderr.includes('already running')) return;
  throw new CdpError({
    code: 'guest-paused',
    message: `${name} has arrived on ${to} and is paused, and could not be resumed: ${stderr.trim()}`,
    hint: `virsh --connect ${to} resume ${name}`,
  });
}

function requireProtected(protector: Protector): void {
  const { name } = protector.record;
  const { observation } = protector;
  const { state } = protector.status();
  if (state === 'protected' && observation?.run === 'running') return;
  throw new RefusedError({
    code: 'not-protected',
    message: `${name} is ${state}${observation?.run === 'running' ? '' : ', and its guest does not run'}: only a protected, running domain migrates with its mirror`,
    hint: `virt-cdp status ${name} says what to do; virsh migrate takes it along unprotected`,
  });
}

function requireOptions(options: string[]): void {
  const refused = options.find((option) => refusedOptions.test(option));
  if (refused === undefined) return;
  throw new UsageError({
    code: 'option-refused',
    message: `virsh migrate ${refused} can't be used with a protected domain`,
    hint: `virt-cdp unprotect it first, or leave ${refused} out`,
  });
}

function noAgent(): RefusedError {
  return new RefusedError({
    code: 'no-destination-agent',
    message: 'without an agent the domain would be unprotected on the destination',
    hint: 'name its socket with --dest-socket, as it is reached from here (ssh -nNL), or add --unprotected',
  });
}
