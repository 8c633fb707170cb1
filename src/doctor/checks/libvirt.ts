import type { Check } from '../check.ts';
import { ok, trouble } from '../finding.ts';
import { libvirtDeadlineMs } from '../host-view.ts';

interface Facts {
  /** 1,000,000 * major + 1,000 * minor + release; null if it does not answer. */
  version: number | null;
  problem: string | null;
}

/** qemu.d is read by libvirt 6.5 and later, synchronous block copies are made by 8.0 and later. */
const oldest = 8_000_000;

/** Whether libvirt answers, and can do what is asked of it. */
export const libvirtCheck: Check<Facts> = {
  name: 'libvirt',
  gather: async ({ libvirt, libvirtProblem }) => ({
    version: libvirt === null ? null : await libvirt.version(libvirtDeadlineMs),
    problem: libvirtProblem,
  }),
  examine: ({ version, problem }) => {
    if (version === null) {
      const fix = 'systemctl status libvirtd (or virtqemud); as root';
      return [
        trouble('error', `libvirt does not answer: ${problem ?? ''}`, 'nothing can be protected without it', fix),
      ];
    }
    const text = `libvirt ${Math.floor(version / 1e6)}.${Math.floor(version / 1000) % 1000}.${version % 1000}`;
    if (version >= oldest) return [ok(`${text} answers`)];
    const why = 'before 8.0 it has no synchronous block copy, which a rebuild is made of';
    return [trouble('error', `${text} is too old`, why, 'upgrade libvirt to 8.0 or later')];
  },
};
