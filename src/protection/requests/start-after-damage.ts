import { errorAndHint } from '../../errors.ts';
import { lastStart } from '../../store/start-marker.ts';
import { imageName, sameStorage } from '../../storage/image.ts';
import { probeImage } from '../../storage/tools.ts';
import type { Host } from '../host.ts';
import type { Protector } from '../protector.ts';
import type { FailedStart } from '../starts/start-watch.ts';
import { start } from './start.ts';

/** A disk whose current copy, the primary, fails at once. */
interface Damage {
  dev: string;
  why: string;
  /** The definition names the primary itself, and not an overlay that may hold more. */
  asRecorded: boolean;
}

/**
 * Libvirt could not start a domain. If that is for want of a primary, it is told, and by the configuration's `start.after_damage`
 * the domain is started from its mirror: that is what whoever asked for the start was promised. Whatever else the reason was
 * is between libvirt and them.
 */
export async function startAfterDamage(protector: Protector, failed: FailedStart, host: Host): Promise<void> {
  await forgetStart(protector, failed, host);
  const damages = await damagesOf(protector, host);
  if (damages.length === 0 || !(await failed.stillSo())) return;
  const what = `libvirt could not start it: ${damages.map(({ why }) => why).join('; ')}`;
  const refuse = async (why: string): Promise<void> => {
    const reason = `${what}; ${why}`;
    protector.note('start-refused', null, { reason });
    await explain(protector, damages, reason);
  };
  const byHand = `virt-cdp start ${protector.record.name} starts it from the mirror`;
  if (host.config().start.afterDamage === 'refuse') return refuse(byHand);
  if (protector.record.policy === 'strict')
    return refuse(`its policy is strict, and the mirror alone one copy; ${byHand}`);
  if (damages.some(({ asRecorded }) => !asRecorded)) {
    return refuse(`its definition names an image that is not known as a copy, and may hold more than the mirror`);
  }
  protector.note('start-refused', null, { reason: `${what}; it is started from the mirror` });
  try {
    await start(protector, {}, host);
  } catch (error) {
    await refuse(`nor can it be started from the mirror: ${errorAndHint(error)}`);
  }
}

/** The guest has not run, so what was true of the copies before the hook marked this start is true still. */
async function forgetStart(protector: Protector, failed: FailedStart, host: Host): Promise<void> {
  const mark = await lastStart(host.config().store, failed.uuid);
  if (!(await failed.stillSo())) return;
  await protector.amend((record) => ({ ...record, lastStart: mark }));
}

/**
 * A copy that does not answer in time makes a start hang, not fail: then somebody ended the domain, and wants it neither from here
 * nor from there.
 */
async function damagesOf(protector: Protector, host: Host): Promise<Damage[]> {
  const { record } = protector;
  const { domain } = await host.definition(await host.find(record.uuid));
  const damages: Damage[] = [];
  for (const { dev, primary } of record.disks) {
    if (!primary.current) continue;
    const answer = await probeImage(primary.image, { deadlineMs: host.config().mirror.timeoutMs, opener: host.opener });
    protector.memoryOf(dev).reachable.primary = answer.ok;
    if (answer.ok || answer.late) continue;
    const defined = domain.disks.find((disk) => disk.dev === dev)?.image;
    damages.push({
      dev,
      why: `the primary of ${dev}, '${imageName(primary.image)}', fails: ${answer.reason}`,
      asRecorded: defined != null && sameStorage(defined, primary.image),
    });
  }
  return damages;
}

/** So that the status says it too, until the domain runs. */
async function explain(protector: Protector, damages: Damage[], reason: string): Promise<void> {
  await protector.amend((record) => {
    const disks = record.disks.map((disk) =>
      disk.state === 'stopped' && damages.some(({ dev }) => dev === disk.dev)
        ? { ...protector.memoryOf(disk.dev).reached(disk), reason }
        : disk,
    );
    return { ...record, disks };
  });
}
