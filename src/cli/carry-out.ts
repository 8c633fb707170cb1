import type { Action, ActionArguments, ActionResult } from '../control/api.ts';
import { CdpError } from '../errors.ts';
import type { DiskStatus } from '../protection/model.ts';
import type { Context } from './command.ts';
import type { ExitCode } from './exit.ts';
import { exitCodes } from './exit.ts';
import { formatBytes } from './format.ts';
import type { Wait } from './wait.ts';
import { waitFor } from './wait.ts';

/** What to wait for after the agent has accepted an action. */
export interface Goal {
  noWait: boolean;
  /** The one disk that matters; all if undefined. */
  disk: string | undefined;
  reached(disk: DiskStatus): boolean;
}

/**
 * Has the agent do something, tells what it says, and stays until the goal is reached. With --json there is one object,
 * the ActionResult, at the end, with the status as it is then.
 * @throws CdpError `goal-not-reached` when a disk gets stuck on the way.
 */
export async function carryOut<A extends Action>(
  context: Context,
  domain: string,
  action: A,
  args: ActionArguments[A],
  goal?: Goal,
): Promise<ExitCode> {
  const { client, out } = context;
  const result = await client.act(domain, action, args);
  if (!out.json) {
    out.line(result.message);
    for (const warning of result.warnings) out.warn(`${out.style('yellow', 'warning:')} ${warning}`);
  }
  if (!goal || goal.noWait || !isUnderWay(result, goal)) {
    if (out.json) out.value(result);
    return exitCodes.done;
  }
  return stay(context, domain, result, goal);
}

async function stay(context: Context, domain: string, result: ActionResult, goal: Goal): Promise<ExitCode> {
  const { client, out, interrupt } = context;
  const wait: Wait = {
    domain,
    devs: goal.disk === undefined ? [] : [goal.disk],
    reached: (disk) => goal.reached(disk),
  };
  const outcome = await waitFor(client, out, interrupt, wait);
  switch (outcome.kind) {
    case 'reached':
      if (out.json) out.value({ ...result, status: outcome.status });
      return exitCodes.done;
    case 'interrupted':
      out.warn(`the work goes on in the agent; see how far it is: virt-cdp status ${domain}`);
      return exitCodes.interrupted;
    case 'stuck':
      throw stuckError(outcome.status.domain, outcome.disk);
  }
}

/**
 * False if waiting is in vain: the domain does not run, or the agent has warned of what only a restart or the
 * administrator can change.
 */
function isUnderWay(result: ActionResult, goal: Goal): boolean {
  const { status, warnings } = result;
  if (status === null) return true;
  if (!status.running) return false;
  const disks = status.disks.filter((disk) => goal.disk === undefined || disk.dev === goal.disk);
  const open = disks.filter((disk) => !goal.reached(disk));
  return warnings.length === 0 || !open.every((disk) => disk.state === 'waiting' && disk.reason !== null);
}

function stuckError(domain: string, disk: DiskStatus): CdpError {
  return new CdpError({
    code: 'goal-not-reached',
    message: `${domain} ${disk.dev} is ${disk.state}: ${disk.reason ?? silenceText(disk)}`,
    hint: `the agent goes on when it can; see virt-cdp status ${domain} and virt-cdp events --domain ${domain}`,
  });
}

function silenceText({ state, job }: DiskStatus): string {
  if (state === 'stopped') return 'the domain does not run any more';
  if (state === 'broken' || job === null) return 'the agent does not say why';
  return `its ${job.kind} does not move any more, at ${formatBytes(job.done)} of ${formatBytes(job.total)}`;
}
