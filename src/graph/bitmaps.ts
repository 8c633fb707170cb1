import type { BitmapName } from '../qmp/commands.ts';
import type { Monitor } from '../qmp/monitor.ts';
import { bitmapGranularityBytes } from './names.ts';

/** Starts to record what is written to a node, with what other bitmaps had recorded already. */
export async function addBitmap(monitor: Monitor, node: string, name: string, merged: BitmapName[]): Promise<void> {
  await monitor.execute('block-dirty-bitmap-add', { node, name, granularity: bitmapGranularityBytes });
  if (merged.length > 0) await monitor.execute('block-dirty-bitmap-merge', { node, target: name, bitmaps: merged });
}

export async function removeBitmap(monitor: Monitor, node: string, name: string): Promise<void> {
  await monitor.execute('block-dirty-bitmap-remove', { node, name });
}
