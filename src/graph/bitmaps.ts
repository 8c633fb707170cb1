import type { BitmapName } from '../qmp/commands.ts';
import { QmpError } from '../qmp/errors.ts';
import type { Monitor } from '../qmp/monitor.ts';
import { bitmapGranularityBytes } from './names.ts';

/** Starts to record what is written to a node, with what other bitmaps had recorded already. */
export async function addBitmap(
  monitor: Monitor,
  node: string,
  name: string,
  merged: BitmapName[],
  { persistent = false }: { persistent?: boolean } = {},
): Promise<void> {
  const bitmap = { node, name, granularity: bitmapGranularityBytes };
  try {
    await monitor.execute('block-dirty-bitmap-add', { ...bitmap, ...(persistent && { persistent }) });
  } catch (error) {
    // An image that can't keep one, as qcow2 of version 2, is tracked for as long as QEMU runs.
    if (!persistent || !(error instanceof QmpError) || /already exists/i.test(error.description)) throw error;
    await monitor.execute('block-dirty-bitmap-add', bitmap);
  }
  if (merged.length > 0) await monitor.execute('block-dirty-bitmap-merge', { node, target: name, bitmaps: merged });
}

export async function removeBitmap(monitor: Monitor, node: string, name: string): Promise<void> {
  await monitor.execute('block-dirty-bitmap-remove', { node, name });
}
