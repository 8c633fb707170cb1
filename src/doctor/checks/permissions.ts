import { childOf, childrenOf, readXml, type XmlElement } from '../../domain/xml.ts';
import { imageName } from '../../storage/image.ts';
import { pathOf } from '../../storage/path.ts';
import { runTool } from '../../storage/run-tool.ts';
import type { Check } from '../check.ts';
import { ok, trouble, type Remark } from '../finding.ts';
import { disksOf, libvirtDeadlineMs, libvirtOf } from '../host-view.ts';

interface Facts {
  /** The security drivers that confine QEMU, e.g. `apparmor`. */
  confinedBy: string[];
  /** virsh's version, e.g. `9.0.0`; null if it is not installed. */
  virsh: string | null;
  /** Mirrors that are reached by a path of this host. */
  local: { domain: string; dev: string; name: string }[];
}

const deadlineMs = 5_000;

const why = 'what lies on this host is handed to QEMU open, because libvirt does not know of mirrors';

/** Whether QEMU may be handed mirrors that libvirt does not know of (docs/decisions/handed-descriptors.md). */
export const permissionsCheck: Check<Facts> = {
  name: 'permissions',
  gather: async (host) => ({
    confinedBy: confinementsIn(await libvirtOf(host).capabilities(libvirtDeadlineMs)),
    virsh: await virshVersion(),
    local: disksOf(host).flatMap(({ domain, record: { dev, mirror } }) =>
      pathOf(mirror.image) === null ? [] : { domain, dev, name: imageName(mirror.image) },
    ),
  }),
  examine: ({ confinedBy, virsh, local }) => {
    const remarks: Remark[] = [];
    if (virsh === null || !isNewEnough(virsh)) {
      const what = `virsh ${virsh === null ? 'is not installed' : `is version ${virsh}`}`;
      const fix = 'install libvirt-clients (Debian, Ubuntu) or libvirt-client (Fedora, RHEL), 8.2 or later';
      remarks.push(trouble('error', what, `${why}, by virsh`, fix));
    }
    for (const { domain, dev, name } of local) {
      for (const model of confinedBy) {
        const what = `QEMU is confined by ${model}, which may keep it from the mirror of ${domain} ${dev}, '${name}'`;
        const fix =
          model === 'apparmor'
            ? `name its folder in /etc/apparmor.d/abstractions/libvirt-qemu.d/virt-cdp; that counts from the domain's next start`
            : `allow QEMU's domain to read and write it: ausearch -m avc -c qemu-kvm, or use a mirror on the network`;
        remarks.push(trouble('warning', what, why, fix));
      }
    }
    return remarks.length > 0 ? remarks : [ok(`QEMU may be handed all ${local.length} mirrors that lie on this host`)];
  },
};

/** What libvirt's capabilities say of its security drivers, but for file owners (`dac`): what is handed open needs none. */
export function confinementsIn(capabilities: string): string[] {
  const names = securityModels(capabilities).map(({ name }) => name);
  return names.filter((name) => name !== 'dac' && name !== 'none' && name !== '');
}

/** The `<secmodel>` elements of libvirt's capabilities, with the names of their drivers. */
export function securityModels(capabilities: string): { name: string; element: XmlElement }[] {
  const host = childOf(readXml(capabilities), 'host');
  const elements = host === null ? [] : childrenOf(host, 'secmodel');
  return elements.map((element) => ({ name: childOf(element, 'model')?.text.trim() ?? '', element }));
}

async function virshVersion(): Promise<string | null> {
  try {
    return (await runTool('virsh', ['--version'], { deadlineMs })).stdout.trim();
  } catch {
    return null;
  }
}

/** `--pass-fds` came with 8.2. */
function isNewEnough(version: string): boolean {
  const [major = 0, minor = 0] = version.split('.').map(Number);
  return major > 8 || (major === 8 && minor >= 2);
}
