import { readFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { childOf, childrenOf, readXml } from '../../domain/xml.ts';
import { imageName } from '../../storage/image.ts';
import { pathOf } from '../../storage/path.ts';
import type { Check } from '../check.ts';
import { ok, trouble, type Remark } from '../finding.ts';
import { disksOf, libvirtDeadlineMs, libvirtOf } from '../host-view.ts';

interface Facts {
  /** The user id of QEMUs; null if it is not known. */
  user: number | null;
  /** E.g. `apparmor`; none of them is `dac`. */
  securityModels: string[];
  /** QEMUs have a /dev of their own. */
  privateDev: boolean;
  /** Mirrors that are reached by a path. */
  local: { domain: string; dev: string; name: string; kind: string }[];
}

/** Whether QEMU may open mirrors that libvirt does not know of. */
export const permissionsCheck: Check<Facts> = {
  name: 'permissions',
  async gather(host) {
    const conf = await readFile(join(dirname(host.hooksDir), 'qemu.conf'), 'utf8').catch(() => '');
    return {
      ...securityIn(await libvirtOf(host).capabilities(libvirtDeadlineMs)),
      privateDev: hasMountNamespace(conf),
      local: disksOf(host).flatMap(({ domain, record: { dev, mirror } }) =>
        pathOf(mirror.image) === null
          ? []
          : { domain, dev, name: imageName(mirror.image), kind: mirror.image.source.kind },
      ),
    };
  },
  examine: ({ user, securityModels, privateDev, local }) => {
    const remarks = local.flatMap(({ domain, dev, name, kind }): Remark[] => {
      const obstacles = [
        ...(user !== null && user !== 0 ? [`QEMU runs as user ${user}`] : []),
        ...securityModels.map((model) => `QEMU is confined by ${model}`),
        ...(privateDev && kind === 'block' ? ['QEMU has a /dev of its own'] : []),
      ];
      if (obstacles.length === 0) return [];
      const what = `QEMU may not be able to open the mirror of ${domain} ${dev}, '${name}': ${obstacles.join(', ')}`;
      const why = 'libvirt does not know of the mirror, and gives no permission for it';
      return [
        trouble('warning', what, why, 'serve it over NBD on TCP (nbd://localhost/...), which needs no permission'),
      ];
    });
    return remarks.length > 0
      ? remarks
      : [ok(`QEMU may open all ${local.length} mirrors that have a path on this host`)];
  },
};

/** What libvirt's capabilities say of its security drivers; the base label of `dac` is QEMU's user and group. */
export function securityIn(capabilities: string): Pick<Facts, 'user' | 'securityModels'> {
  const host = childOf(readXml(capabilities), 'host');
  const models = host === null ? [] : childrenOf(host, 'secmodel');
  const nameOf = (model: (typeof models)[number]): string => childOf(model, 'model')?.text.trim() ?? '';
  const dac = models.find((model) => nameOf(model) === 'dac');
  const label = dac === undefined ? '' : (childOf(dac, 'baselabel')?.text.trim() ?? '');
  const user = /^\+(\d+):/.exec(label)?.[1];
  return {
    user: user === undefined ? null : Number(user),
    securityModels: models.map(nameOf).filter((name) => name !== 'dac' && name !== 'none' && name !== ''),
  };
}

/** qemu.conf's default is namespaces = [ "mount" ], on Linux. */
export function hasMountNamespace(qemuConf: string): boolean {
  const set = /^\s*namespaces\s*=\s*\[([^\]]*)\]/m.exec(qemuConf)?.[1];
  return set === undefined || set.includes('"mount"');
}
