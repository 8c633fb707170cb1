import type { DiskStatus, Side } from '../protection/model.ts';
import type { Context } from './command.ts';
import { currencyText } from './status-text.ts';

/** Tells, before data is given up, which copies are stale and as of when each is whole. */
export async function tellLoss(context: Context, domain: string, sides: readonly Side[]): Promise<void> {
  const status = await context.client.domain(domain);
  for (const disk of status.disks) {
    for (const line of sides.flatMap((side) => lossText(disk, side))) context.out.warn(`${status.domain} ${line}`);
  }
}

function lossText(disk: DiskStatus, side: Side): string[] {
  const copy = disk[side];
  if (copy.current) return [];
  return [`${disk.dev}: the ${side} ${copy.source} is ${currencyText(copy)}; what was written later is not on it`];
}
