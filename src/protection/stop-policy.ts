import { hasStopPolicy, type DomainDisk } from '../domain/domain.ts';

export const strictNeedsQuorum =
  "policy strict needs QEMU's quorum driver: a mirror job can't hold a write's acknowledgement back until the mirror has it";

/** What a disk that is protected without the stop policy lacks. `defined` as below. */
export function relaxedRemark(domain: string, dev: string, defined: DomainDisk | undefined): string {
  return (
    `the domain runs without error_policy='stop' on this disk: an error of its primary is told to the guest before it is moved onto the ` +
    `mirror. ${wayToStopPolicy(domain, dev, defined)}`
  );
}

/** The way back to a primary needs a moment in which every I/O fails, and the guest must not be told. */
export function rebuildNeedsStart(domain: string): string {
  return `the domain runs without error_policy='stop' on this disk: before a rebuild, virsh shutdown ${domain}, then virsh start ${domain}`;
}

/**
 * What to type so that a running disk gets error_policy='stop', which QEMU takes only when it opens the disk.
 * @param defined The disk at the domain's next start; undefined if there is none, as of a transient domain.
 */
export function wayToStopPolicy(domain: string, dev: string, defined: DomainDisk | undefined): string {
  const withoutReboot = `virt-cdp protect ${domain} --disk ${dev} --stop-policy-by save-restore`;
  if (defined === undefined) {
    return (
      `It is transient: create it again with that in the disk's <driver>, or make it persistent first. Type: virsh dumpxml --security-info ${domain} >${domain}.xml, ` +
      `virsh define ${domain}.xml, then ${withoutReboot}`
    );
  }
  return hasStopPolicy(defined)
    ? `Type: virsh shutdown ${domain}, then virsh start ${domain}. Or without a reboot, with a pause of seconds: ${withoutReboot}`
    : `Type: ${withoutReboot}, for a pause of seconds; its definition lacks it too, and gets it by that`;
}
