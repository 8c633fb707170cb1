import { CdpError } from '../../errors.ts';
import { requireRelays } from '../../protection/relays/relays.ts';
import { waitsWithoutEnd } from '../../storage/image.ts';
import { qemuToolsHint } from '../../storage/run-tool.ts';
import type { Check } from '../check.ts';
import { ok, trouble } from '../finding.ts';
import { disksOf } from '../host-view.ts';

interface Facts {
  /** The protected disks whose mirrors are reached through one, `DOMAIN DEV` each. */
  disks: string[];
  missing: boolean;
}

/** Whether the mirrors that QEMU is not to open by itself can be opened. */
export const relaysCheck: Check<Facts> = {
  name: 'relays',
  gather: async (host) => ({
    disks: disksOf(host).flatMap(({ domain, record }) =>
      waitsWithoutEnd(record.mirror.image) ? `${domain} ${record.dev}` : [],
    ),
    missing: await isMissing(),
  }),
  examine: ({ disks, missing }) => {
    if (disks.length === 0) return [ok('no mirror is reached through a relay')];
    if (!missing) return [ok(`qemu-nbd is there, as relay for ${disks.length} mirrors on iSCSI`)];
    const why = `without it the mirror of ${disks.join(', ')}, on an iSCSI target, can not be opened`;
    return [trouble('error', 'qemu-nbd is not installed', why, qemuToolsHint)];
  },
};

async function isMissing(): Promise<boolean> {
  try {
    await requireRelays();
    return false;
  } catch (error) {
    if (error instanceof CdpError && error.code === 'tool-missing') return true;
    throw error;
  }
}
