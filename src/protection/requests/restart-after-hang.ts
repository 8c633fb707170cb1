import { errorText } from '../../errors.ts';
import type { Host } from '../host.ts';
import type { Side } from '../model.ts';
import type { Protector } from '../protector.ts';
import { start } from './start.ts';

/** libvirt asks QEMU to end for 10 s before it kills it, and then waits for the kernel to let go of it. */
const destroyDeadlineMs = 60_000;

/**
 * The guest waits for a copy that QEMU can't let go of. If the configuration's `on_hang` says so, QEMU is killed, and the domain
 * started from the other copy: the guest reboots, and nothing that it was told to be written is lost. Not with policy `strict`, under
 * which one copy is not enough, nor if the domain ends with its QEMU, because it is transient.
 */
export async function restartAfterHang(protector: Protector, dev: string, side: Side, host: Host): Promise<void> {
  const { live, record } = protector;
  const { client } = host.session;
  if (host.config().onHang === 'wait' || record.policy === 'strict' || live === null) return;
  try {
    if (!(await client.isPersistent(live.ref))) return;
    protector.note('hang', dev, { side, restarts: true });
    await client.destroy(live.ref, destroyDeadlineMs);
    // libvirt's event may be late.
    if (protector.live === live) protector.detach({ migrated: false });
    await start(protector, { hung: { dev, side } }, host);
  } catch (error) {
    protector.note('hang', dev, { side, error: `the domain could not be started anew: ${errorText(error)}` });
  }
}
