import type { Source } from '../../domain/image.ts';
import { hasCephTimeout } from '../../storage/ceph-config.ts';
import { runTool } from '../../storage/run-tool.ts';
import type { Check } from '../check.ts';
import { ok, trouble, type Remark } from '../finding.ts';
import { disksOf, libvirtOf } from '../host-view.ts';

interface Primary {
  domain: string;
  dev: string;
  /** What it is reached by; NBD that hangs is noticed and left by the agent. */
  by: 'iscsi' | 'rbd' | 'nfs' | 'other';
  /** Whether an operation that is not answered ends by itself in an error. */
  endsByItself: boolean;
}

const deadlineMs = 5_000;

const why = 'storage that neither answers nor fails hangs the guest; only one that fails makes it move to the mirror';

const fixes: Record<Primary['by'], string> = {
  iscsi:
    "QEMU's own initiator waits for ever: log in by the kernel's (iscsiadm --login) and use the device, with node.session.timeo.replacement_timeout in /etc/iscsi/iscsid.conf",
  rbd: 'put rados_osd_op_timeout = 30 and rados_mon_op_timeout = 30 into [client] of the file that <config> of the disk names (/etc/ceph/ceph.conf); it holds from the next start on',
  nfs: 'mount it with softerr,timeo=100,retrans=2',
  other: '',
};

/** Whether the primaries that libvirt opens over a network end a wait by themselves. */
export const primariesCheck: Check<Primary[]> = {
  name: 'primaries',
  async gather(host) {
    libvirtOf(host);
    const found = disksOf(host).map(async ({ domain, record: { dev }, live, defined }) => {
      const image = (live ?? defined)?.image ?? null;
      return image === null ? [] : [{ domain, dev, ...(await waitOf(image.source)) }];
    });
    return (await Promise.all(found)).flat();
  },
  examine: (primaries) => {
    const endless = primaries.filter(({ endsByItself }) => !endsByItself);
    if (endless.length === 0) return [ok(`${primaries.length} primaries do not wait for their storage for ever`)];
    return endless.map(({ domain, dev, by }): Remark => {
      const what = `the primary of ${domain} ${dev}, on ${by.toUpperCase()}, has no time-out`;
      return trouble('warning', what, why, fixes[by]);
    });
  },
};

async function waitOf(source: Source): Promise<Pick<Primary, 'by' | 'endsByItself'>> {
  switch (source.kind) {
    case 'iscsi':
      return { by: 'iscsi', endsByItself: false };
    case 'rbd':
      return { by: 'rbd', endsByItself: await hasCephTimeout(source) };
    case 'file':
      return ofFile(source.path);
    case 'block':
    case 'nbd':
      return { by: 'other', endsByItself: true };
  }
}

async function ofFile(path: string): Promise<Pick<Primary, 'by' | 'endsByItself'>> {
  const { stdout } = await runTool('findmnt', ['--noheadings', '--output=FSTYPE,OPTIONS', '--target', path], {
    deadlineMs,
  });
  const [type = '', options = ''] = stdout.trim().split(/\s+/);
  if (!type.startsWith('nfs')) return { by: 'other', endsByItself: true };
  return { by: 'nfs', endsByItself: options.split(',').some((option) => option === 'soft' || option === 'softerr') };
}
