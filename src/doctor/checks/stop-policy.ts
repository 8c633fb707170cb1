import { hasStopPolicy, ignoresErrors } from '../../domain/domain.ts';
import { wayToStopPolicy } from '../../protection/stop-policy.ts';
import type { Check } from '../check.ts';
import { ok, trouble, type Remark } from '../finding.ts';
import { disksOf, libvirtDeadlineMs, libvirtOf, type DeclaredDisk } from '../host-view.ts';

type Facts = Pick<DeclaredDisk, 'domain' | 'defined' | 'live'> & { dev: string };

const why = 'an error of its primary is told to the guest before it is moved to the mirror: the guarantee is relaxed';

/** Whether every protected disk pauses its guest on an error, as it runs and at its next start, and can be protected at all. */
export const stopPolicyCheck: Check<Facts[]> = {
  name: 'stop-policy',
  async gather(host) {
    await libvirtOf(host).version(libvirtDeadlineMs);
    return disksOf(host).map(({ domain, record: { dev }, defined, live }) => ({ domain, dev, defined, live }));
  },
  examine: (disks) => {
    const remarks = disks.flatMap(examineOne);
    return remarks.length > 0 ? remarks : [ok(`${disks.length} protected disks have error_policy='stop'`)];
  },
};

function examineOne({ domain, dev, defined, live }: Facts): Remark[] {
  if (live === undefined && defined === undefined) {
    const fix = `virsh dumpxml ${domain}; virt-cdp unprotect ${domain} --disk ${dev}, if it is gone for good`;
    return [trouble('unknown', `libvirt has no disk ${dev} of a domain ${domain}`, 'it is recorded as protected', fix)];
  }
  const unsupported = (live ?? defined)?.unsupported ?? null;
  if (unsupported !== null) {
    const fix = `virt-cdp unprotect ${domain} --disk ${dev}, or change the disk: virsh edit ${domain}`;
    return [trouble('error', `${domain}: ${unsupported}`, 'it is declared protected, and is not', fix)];
  }
  if (live !== undefined && !hasStopPolicy(live)) {
    const what = `${domain} ${dev} runs without error_policy='stop'`;
    const way = wayToStopPolicy(domain, dev, defined);
    return ignoresErrors(live)
      ? [trouble('error', what, 'a write that failed is told to the guest as done: it is not protected', way)]
      : [trouble('warning', what, why, way)];
  }
  if (defined !== undefined && !hasStopPolicy(defined)) {
    const what = `${domain} ${dev} is defined without error_policy='stop'`;
    const fix = `virsh edit ${domain}, and put error_policy='stop' rerror_policy='stop' into the <driver> of ${dev}`;
    return [trouble('warning', what, `from the domain's next start on ${why}`, fix)];
  }
  return [];
}
