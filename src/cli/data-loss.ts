import type { DiskStatus, DomainStatus, Side } from '../protection/model.ts';
import type { Context } from './command.ts';
import { currencyText } from './status-text.ts';

/**
 * Tells, before data is given up, which copies are stale and as of when each is whole.
 * @param atStake The copies of a disk that the action may make the current ones, as things are.
 */
export async function tellLoss(
  context: Context,
  domain: string,
  atStake: (disk: DiskStatus, status: DomainStatus) => readonly Side[],
): Promise<void> {
  const status = await context.client.domain(domain);
  const lines = status.disks.flatMap((disk) => atStake(disk, status).flatMap((side) => lossText(disk, side)));
  if (lines.length > 0 && status.disks.length > 1) lines.push(differentTimes);
  for (const line of lines) context.out.warn(`${status.domain} ${line}`);
}

const differentTimes =
  'would run on disks of different times: what spans several of them (LVM, RAID, data and their log) may not fit together';

function lossText(disk: DiskStatus, side: Side): string[] {
  const copy = disk[side];
  if (copy.current) return [];
  const lost =
    copy.consistentAsOf === null ? 'a guest may not even boot from it' : 'what was written later is not on it';
  return [`${disk.dev}: the ${side} ${copy.source} is ${currencyText(copy)}; ${lost}`];
}
