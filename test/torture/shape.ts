import type { Policy } from '../../src/domain/declaration.ts';
import { Random } from './random.ts';

type Format = 'raw' | 'qcow2';

export interface DiskShape {
  dev: string;
  bus: 'virtio' | 'scsi';
  iothread: boolean;
  primary: { format: Format; on: 'server' | 'file' };
  mirror: { format: Format };
}

export interface DomainShape {
  name: string;
  policy: Policy;
  /** Writes in flight at a time and disk. */
  depth: number;
  disks: DiskShape[];
}

/** The domains of a run: which there are is fixed, what their disks are like is the seed's. */
export function domainShapes(seed: number): DomainShape[] {
  const random = new Random(seed ^ 0x5ca1ab1e);
  return [
    domainShape(random, 'web', 'available', 1),
    domainShape(random, 'db', 'available', 2),
    domainShape(random, 'bank', 'strict', 1),
  ];
}

function domainShape(random: Random, name: string, policy: Policy, diskCount: number): DomainShape {
  const used = { virtio: 0, scsi: 0 };
  const disks = Array.from({ length: diskCount }, (): DiskShape => {
    // A guest finds several SCSI disks in any order.
    const bus = used.scsi === 0 ? random.pick(['virtio', 'virtio', 'scsi'] as const) : 'virtio';
    return {
      dev: `${bus === 'virtio' ? 'v' : 's'}d${'ab'.charAt(used[bus]++)}`,
      bus,
      // virtio-scsi with an I/O thread is refused.
      iothread: bus === 'virtio' && random.chance(0.4),
      primary: { format: random.pick(['raw', 'raw', 'qcow2']), on: random.chance(0.8) ? 'server' : 'file' },
      mirror: { format: random.pick(['raw', 'raw', 'qcow2']) },
    };
  });
  return { name, policy, depth: random.pick([1, 1, 2]), disks };
}
