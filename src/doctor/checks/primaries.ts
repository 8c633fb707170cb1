import { readFile } from 'node:fs/promises';
import { attributeOf, childOf, childrenOf, readXml, type XmlElement } from '../../domain/xml.ts';
import type { LibvirtClient } from '../../libvirt/client.ts';
import { runTool } from '../../storage/run-tool.ts';
import type { Check } from '../check.ts';
import { ok, trouble, type Remark } from '../finding.ts';
import { disksOf, libvirtDeadlineMs, libvirtOf } from '../host-view.ts';

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
    const libvirt = libvirtOf(host);
    const found = await Promise.all(disksOf(host).map(({ domain, record }) => primaryOf(libvirt, domain, record.dev)));
    return found.flatMap((one) => one ?? []);
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

async function primaryOf(libvirt: LibvirtClient, domain: string, dev: string): Promise<Primary | null> {
  const ref = await libvirt.lookupByName(domain, libvirtDeadlineMs).catch(() => null);
  if (ref === null) return null;
  const devices = childOf(readXml(await libvirt.domainXml(ref, {}, libvirtDeadlineMs)), 'devices');
  const disk = devices && childrenOf(devices, 'disk').find((one) => attributeOf(childOf(one, 'target'), 'dev') === dev);
  const source = disk ? childOf(disk, 'source') : null;
  return source === null ? null : { domain, dev, ...(await waitOf(source)) };
}

async function waitOf(source: XmlElement): Promise<Pick<Primary, 'by' | 'endsByItself'>> {
  const protocol = attributeOf(source, 'protocol');
  if (protocol === 'iscsi') return { by: protocol, endsByItself: false };
  if (protocol === 'rbd') {
    const path = attributeOf(childOf(source, 'config'), 'file') ?? '/etc/ceph/ceph.conf';
    const text = await readFile(path, 'utf8').catch(() => '');
    return { by: 'rbd', endsByItself: /^\s*rados[ _]osd[ _]op[ _]timeout\s*=\s*[1-9]/m.test(text) };
  }
  const file = attributeOf(source, 'file');
  if (file === null) return { by: 'other', endsByItself: true };
  const { stdout } = await runTool('findmnt', ['--noheadings', '--output=FSTYPE,OPTIONS', '--target', file], {
    deadlineMs,
  });
  const [type = '', options = ''] = stdout.trim().split(/\s+/);
  if (!type.startsWith('nfs')) return { by: 'other', endsByItself: true };
  return { by: 'nfs', endsByItself: options.split(',').some((option) => option === 'soft' || option === 'softerr') };
}
