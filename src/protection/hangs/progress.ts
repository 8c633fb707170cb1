import type { BlockStats } from '../../qmp/commands.ts';
import { QmpError } from '../../qmp/errors.ts';
import type { Monitor } from '../../qmp/monitor.ts';

/** What a device's statistics count of requests that ended, well or not (qapi/block-core.json: BlockDeviceStats). */
const ended = /_operations$/;

/** For each of these devices, a text that changes when requests end: one cheap question for a domain. */
export async function countersOf(monitor: Monitor, qdevs: string[]): Promise<Map<string, string>> {
  const devices = await monitor.execute('query-blockstats', {});
  return new Map(
    devices.flatMap((device) =>
      device.qdev !== undefined && qdevs.includes(device.qdev) ? [[device.qdev, countersText(device)]] : [],
    ),
  );
}

function countersText({ stats }: BlockStats): string {
  return Object.entries(stats)
    .flatMap(([name, count]) => (ended.test(name) ? [`${name}=${count}`] : []))
    .join();
}

export interface Rings {
  /** Changes when a request ends, also a discard, which virtio-blk does not count. */
  used: string;
  /** Requests that the device has taken and not given back. */
  inFlight: number;
}

/**
 * How far a virtio device is with what the guest asked of it; null if this QEMU can't tell. The disks of one virtio-scsi controller share
 * its rings. (`x-query-virtio-queue-element` would show the guest's side of a ring too, but follows whatever an idle ring holds, and
 * QEMU takes the device for broken where that leads nowhere: hw/virtio/virtio.c, virtqueue_split_read_next_desc.)
 */
export async function ringsOf(monitor: Monitor, qdev: string): Promise<Rings | null> {
  try {
    const rings = qdev.endsWith('/virtio-backend')
      ? await queuesOf(monitor, qdev, 0)
      : (await Promise.all((await scsiControllers(monitor)).map((path) => queuesOf(monitor, path, 2)))).flat();
    return {
      used: rings.map((ring) => ring['used-idx']).join(),
      inFlight: rings.reduce((sum, { inuse }) => sum + inuse, 0),
    };
  } catch (error) {
    if (error instanceof QmpError) return null;
    throw error;
  }
}

/** The first two queues of a controller carry no requests. */
async function scsiControllers(monitor: Monitor): Promise<string[]> {
  const devices = await monitor.execute('x-query-virtio', {});
  return devices.flatMap(({ name, path }) => (name === 'virtio-scsi' ? path : []));
}

async function queuesOf(
  monitor: Monitor,
  path: string,
  first: number,
): Promise<{ inuse: number; 'used-idx': number }[]> {
  const count = (await monitor.execute('x-query-virtio-status', { path }))['num-vqs'];
  const rings = [];
  for (let queue = first; queue < count; queue++)
    rings.push(await monitor.execute('x-query-virtio-queue-status', { path, queue }));
  return rings;
}
