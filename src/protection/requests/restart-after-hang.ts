import { CdpError, errorText } from '../../errors.ts';
import type { Host } from '../host.ts';
import type { Side } from '../model.ts';
import type { Protector } from '../protector.ts';
import { askCopies, chooseSides, start, type StartOptions } from './start.ts';

/** libvirt asks QEMU to end for 10 s before it kills it, and then waits for the kernel to let go of it. */
const destroyDeadlineMs = 60_000;

/**
 * The guest waits for a copy that QEMU can't let go of. If the configuration's `on_hang` says so, QEMU is killed, and the domain
 * started from the other copy: the guest reboots, and nothing that it was told to be written is lost. Not with policy `strict`, under
 * which one copy is not enough, nor if the domain ends with its QEMU, because it is transient, nor if one of its disks could not be started.
 */
export async function restartAfterHang(protector: Protector, dev: string, side: Side, host: Host): Promise<void> {
  const { live, record } = protector;
  const { client } = host.session;
  if (host.config().onHang === 'wait' || record.policy === 'strict' || live === null) return;
  const hung = { dev, side };
  try {
    if (!(await client.isPersistent(live.ref))) return;
    if (!(await canStart(protector, hung, host)) || protector.live !== live) return;
    protector.note('hang', dev, { side, restarts: true });
    await client.destroy(live.ref, destroyDeadlineMs);
    // libvirt's event may be late.
    if (protector.live === live) protector.detach({ migrated: false });
    await start(protector, { hung }, host);
  } catch (error) {
    protector.note('hang', dev, { side, error: `the domain could not be started anew: ${errorText(error)}` });
  }
}

/** Without it the guest would be off, where it loses nothing by waiting. Why it can't is told once. */
async function canStart(protector: Protector, hung: Required<StartOptions>['hung'], host: Host): Promise<boolean> {
  const { record } = protector;
  const memory = protector.memoryOf(hung.dev);
  try {
    const chosen = await chooseSides(record, await askCopies(record, hung, host), false, host);
    for (const [dev, side] of chosen) if (side === 'mirror') refuseLeftMirror(protector, dev);
    return true;
  } catch (error) {
    const why = `the domain is not killed, since it could not be started anew: ${errorText(error)}`;
    if (memory.noRestart !== why) protector.note('hang', hung.dev, { side: hung.side, error: why });
    memory.noRestart = why;
    return false;
  }
}

/** The guest's writes end without a mirror that was left. The record says so before, if quorum and the stop policy hold the guest. */
function refuseLeftMirror(protector: Protector, dev: string): void {
  if (!protector.memoryOf(dev).yanked.mirror) return;
  const seen = protector.observation?.disks.find(({ record }) => record.dev === dev);
  if (seen?.engine === 'quorum' && seen.withoutStopPolicy === null) return;
  throw new CdpError({
    code: 'stale-copy',
    message: `disk ${dev}: the mirror was left, and may lack what was written since`,
  });
}
