import { CdpError, errorText, UsageError } from '../../errors.ts';
import { requireSpaceIn } from '../../storage/free-space.ts';
import { removeSocket, scratchOf } from '../../storage/scratch.ts';
import type { Host } from '../host.ts';
import type { DiskVerdict } from '../model.ts';
import { obstacleToVerify } from '../planner/plan-verify.ts';
import type { Protector } from '../protector.ts';
import { Verification } from '../verification.ts';

export interface VerifyRequest {
  disk?: string | undefined;
  maxBytesPerS?: number | undefined;
  repair?: boolean | undefined;
}

/** So much must be free beyond the reserve for the guest to overwrite something meanwhile. */
const leastSpaceBytes = 64 * 1024 * 1024;

/**
 * Compares the copies of a running domain's disks, one disk after the other, and answers when that is done. With `repair`, what differs
 * is copied from the primary, whose content is what the guest reads; never the other way.
 * @throws CdpError `not-protected-now`, `verify-running`, `verify-in-clear`, `verify-failed`, `space-short`, `nbd-server-in-use`, `iothreads-unsafe`,
 *   `primary-unreadable`, `mirror-unreadable`, `scratch-unusable`, `descriptor-refused`.
 */
export async function verify(protector: Protector, request: VerifyRequest, host: Host): Promise<DiskVerdict[]> {
  const { record } = protector;
  const devs = record.disks.map(({ dev }) => dev).filter((dev) => request.disk === undefined || dev === request.disk);
  if (devs.length === 0) {
    throw new UsageError({
      code: 'disk-not-protected',
      message: `${record.name}'s disk '${String(request.disk)}' is not protected`,
      hint: `virt-cdp status ${record.name}`,
    });
  }
  requireClear(protector, devs);
  await protector.looked();
  requireComparable(protector, devs);
  const { scratch: folder } = host.config().verify;
  await requireSpaceIn(folder, leastSpaceBytes, {
    what: 'what the guest overwrites during a verify',
    hint: 'make room, or name another folder by verify.scratch',
    deadlineMs: host.config().mirror.timeoutMs,
  });
  const verdicts: DiskVerdict[] = [];
  for (const dev of devs) verdicts.push(await verifyDisk(protector, dev, request, folder));
  return verdicts;
}

async function verifyDisk(
  protector: Protector,
  dev: string,
  { maxBytesPerS = 0, repair = false }: VerifyRequest,
  folder: string,
): Promise<DiskVerdict> {
  const memory = protector.memoryOf(dev);
  const sizeBytes = requireComparable(protector, [dev]);
  const verification = new Verification({
    dev,
    sizeBytes,
    maxBytesPerS,
    folder,
    looked: () => protector.looked(),
  });
  memory.verification = verification;
  try {
    const verdict = await verification.run();
    const repairs = repair && verdict.differences.length > 0 && verdict.complete;
    if (repairs) await verification.repair(verdict.differences);
    const told = { ...verdict, repairing: repairs };
    const { differences, ...numbers } = told;
    protector.note('verified', dev, { ...numbers, differences: differences.slice(0, toldDifferences) });
    return told;
  } catch (error) {
    protector.note('verify-failed', dev, { why: errorText(error) });
    throw error;
  } finally {
    memory.verification = null;
    await removeSocket(scratchOf(folder, protector.record.uuid));
  }
}

/** The event log is no place for all of them. */
const toldDifferences = 20;

/** What is saved in the overlays has been decrypted. @throws CdpError `verify-in-clear` */
function requireClear({ record }: Protector, devs: string[]): void {
  for (const { dev, primary, mirror } of record.disks) {
    if (!devs.includes(dev) || (primary.image.encryption === undefined && mirror.image.encryption === undefined))
      continue;
    throw new CdpError({
      code: 'verify-in-clear',
      message: `${record.name}'s disk ${dev} is encrypted: what the guest overwrites during a verify would lie in clear in the scratch folder`,
      hint: 'shut the domain down and compare its copies by qemu-img compare; --disk names another disk',
    });
  }
}

/** The size of the last of these disks. @throws CdpError unless all of them can be compared now. */
function requireComparable(protector: Protector, devs: string[]): number {
  const { record, observation } = protector;
  let sizeBytes = 0;
  for (const { dev } of record.disks) {
    if (protector.memoryOf(dev).verification === null) continue;
    throw new CdpError({
      code: 'verify-running',
      message: `${record.name}'s disk ${dev} is being verified already`,
      hint: `virt-cdp status ${record.name}`,
    });
  }
  for (const dev of devs) {
    const disk = observation?.disks.find((one) => one.record.dev === dev);
    const why =
      observation === null || disk === undefined ? 'the domain does not run' : obstacleToVerify(observation, disk);
    sizeBytes = disk?.graph?.sizeBytes ?? 0;
    if (why === null) continue;
    throw new CdpError({
      code: 'not-protected-now',
      message: `the copies of ${record.name}'s disk ${dev} can't be compared: ${why}`,
      hint: `only a running, protected disk can be verified: virt-cdp status ${record.name}`,
    });
  }
  return sizeBytes;
}
