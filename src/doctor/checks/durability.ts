import type { Image } from '../../domain/image.ts';
import type { Side } from '../../protection/model.ts';
import { durabilityDoubt, type Doubt } from '../../storage/durability.ts';
import type { Check } from '../check.ts';
import { ok, trouble } from '../finding.ts';
import { disksOf } from '../host-view.ts';

interface Copy {
  domain: string;
  dev: string;
  side: Side;
  kind: Image['source']['kind'];
  /** Null if nothing speaks against it. */
  doubt: Doubt | null;
}

const fixes: Record<Copy['kind'], string> = {
  nbd: 'serve it by a server that offers flushes (nbdkit file, qemu-nbd --cache=none); nbdinfo URI tells',
  file: 'put it on a disk, on a file system that is mounted with barriers; findmnt --target PATH tells',
  iscsi: "turn the LUN's write cache off at its target",
  block: 'see to its cache',
  rbd: 'see to its cache',
};

/** Whether the storage of each copy keeps what it has acknowledged, as far as that can be found out. */
export const durabilityCheck: Check<Copy[]> = {
  name: 'durability',
  gather: (host) =>
    Promise.all(
      disksOf(host).flatMap(({ domain, record }) =>
        (['primary', 'mirror'] as const).map(async (side) => {
          const { image } = record[side];
          const options = { deadlineMs: host.config.mirror.timeoutMs, opener: host.opener };
          const doubt = await durabilityDoubt(image, options);
          return { domain, dev: record.dev, side, kind: image.source.kind, doubt };
        }),
      ),
    ),
  examine: (copies) => {
    const remarks = copies.flatMap(({ domain, dev, side, kind, doubt }) =>
      doubt === null
        ? []
        : trouble(
            doubt.known ? 'warning' : 'unknown',
            `the ${side} of ${domain} ${dev}: ${doubt.what}`,
            'what the guest was told is safe may be lost, and nobody is told',
            doubt.known ? fixes[kind] : 'see to what keeps it from being found out; then ask the doctor again',
          ),
    );
    return remarks.length > 0 ? remarks : [ok(`nothing speaks against the storage of ${copies.length} copies`)];
  },
};
