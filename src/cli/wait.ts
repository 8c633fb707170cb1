import { setTimeout as sleep } from 'node:timers/promises';
import type { AgentClient } from '../control/client.ts';
import type { DiskStatus, DomainStatus } from '../protection/model.ts';
import type { Output } from './output.ts';
import { Progress } from './progress.ts';
import { Stillness } from './stillness.ts';

/** An event wakes the look at the status at once; the numbers of a job come from looking this often. */
const pollMs = 500;

export interface Wait {
  /** The domain's UUID or name. */
  domain: string;
  /** The disks that matter; all if empty. */
  devs: readonly string[];
  /** True of a disk that is where the command was to bring it. */
  reached(disk: DiskStatus): boolean;
}

export type Outcome =
  | { kind: 'reached'; status: DomainStatus }
  | { kind: 'stuck'; status: DomainStatus; disk: DiskStatus }
  | { kind: 'interrupted' };

/** Shows the disks' progress until all have reached their goal, one gets nowhere any more, or Ctrl-C. */
export async function waitFor(client: AgentClient, out: Output, interrupt: AbortSignal, wait: Wait): Promise<Outcome> {
  const progress = new Progress(out);
  const stillness = new Stillness();
  const ended = new AbortController();
  const stop = AbortSignal.any([interrupt, ended.signal]);
  const bell = new Bell();
  try {
    let status = await client.domain(wait.domain);
    void ringOnEvents(client, status.domain, bell, stop);
    for (; !interrupt.aborted; status = await client.domain(wait.domain)) {
      const disks = status.disks.filter((disk) => wait.devs.length === 0 || wait.devs.includes(disk.dev));
      const nowMs = performance.now();
      progress.show(disks, nowMs);
      const open = disks.filter((disk) => !wait.reached(disk));
      if (open.length === 0) return { kind: 'reached', status };
      const stuck = open.filter((disk) => stillness.isStuck(disk, nowMs));
      // While another disk is on its way it is worth staying, but not when the domain can't run.
      const hopeless = stuck.find(isOut) ?? (stuck.length === open.length ? stuck[0] : undefined);
      if (hopeless) return { kind: 'stuck', status, disk: hopeless };
      await bell.wait(stop);
    }
    return { kind: 'interrupted' };
  } finally {
    ended.abort();
    progress.close();
  }
}

function isOut({ state }: DiskStatus): boolean {
  return state === 'broken' || state === 'stopped';
}

class Bell {
  private wake: AbortController = new AbortController();

  ring(): void {
    this.wake.abort();
  }

  /** Returns on the next ring, at once if there was one since the last wait, or when it is time to look anyway. */
  async wait(stop: AbortSignal): Promise<void> {
    const signal = AbortSignal.any([this.wake.signal, stop]);
    await sleep(pollMs, undefined, { signal }).catch(() => undefined);
    this.wake = new AbortController();
  }
}

/** Looking at the status finds an agent that is gone; the stream of events only makes the look come sooner. */
async function ringOnEvents(client: AgentClient, domain: string, bell: Bell, stop: AbortSignal): Promise<void> {
  try {
    for await (const event of client.events('now', { follow: true, signal: stop })) {
      if (event.domain === domain) bell.ring();
    }
  } catch {
    // See above.
  }
}
