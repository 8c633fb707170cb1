import { givesQemuItsFiles } from '../../config/qemu-conf.ts';
import { attributeOf, childrenOf } from '../../domain/xml.ts';
import { imageName } from '../../storage/image.ts';
import { runTool } from '../../storage/run-tool.ts';
import type { Check } from '../check.ts';
import { ok, trouble } from '../finding.ts';
import { disksOf, libvirtDeadlineMs, libvirtOf, type DeclaredDisk } from '../host-view.ts';
import { securityModels } from './permissions.ts';

interface Owner {
  uid: number;
  gid: number;
}

interface Mirror {
  domain: string;
  dev: string;
  name: string;
  path: string;
  owner: Owner;
  /** E.g. 0o600. */
  mode: number;
}

interface Facts {
  /** As whom libvirt runs QEMU; null if it does not say. */
  qemu: Owner | null;
  /** Whether libvirt makes QEMU the owner of what it opens. */
  gives: boolean;
  /** Those in files and devices of this host that are there. */
  mirrors: Mirror[];
}

const deadlineMs = 5_000;

/** Whether QEMU's user may open the mirrors on this host when a domain starts from them, which is libvirt's affair, not the agent's. */
export const fileOwnersCheck: Check<Facts> = {
  name: 'file-owners',
  gather: async (host) => ({
    qemu: qemuOwnerIn(await libvirtOf(host).capabilities(libvirtDeadlineMs)),
    gives: await givesQemuItsFiles(),
    mirrors: (await Promise.all(disksOf(host).map(mirrorOf))).flat(),
  }),
  examine: ({ qemu, gives, mirrors }) => {
    if (gives || qemu === null || qemu.uid === 0)
      return [ok('QEMU is given what it opens at a start, or needs no leave to')];
    const closed = mirrors.filter((mirror) => !mayWrite(qemu, mirror));
    if (closed.length === 0) return [ok(`QEMU's user may open all ${mirrors.length} mirrors that lie on this host`)];
    return closed.map(({ domain, dev, name, path }) =>
      trouble(
        'warning',
        `QEMU's user (${qemu.uid}:${qemu.gid}) may not write to the mirror of ${domain} ${dev}, '${name}', and libvirt does not give it to it ` +
          `(dynamic_ownership = 0 in qemu.conf)`,
        'after a failover the domain could not be started from it',
        `chown ${qemu.uid}:${qemu.gid} ${path}`,
      ),
    );
  },
};

/** By libvirt's capabilities: `<baselabel type='kvm'>+64055:+64055</baselabel>` of the security driver `dac`. */
export function qemuOwnerIn(capabilities: string): Owner | null {
  const dac = securityModels(capabilities).find(({ name }) => name === 'dac');
  const labels = dac === undefined ? [] : childrenOf(dac.element, 'baselabel');
  const label = labels.find((one) => attributeOf(one, 'type') === 'qemu')?.text.trim() ?? '';
  const [, uid, gid] = /^\+(\d+):\+(\d+)$/.exec(label) ?? [];
  return uid === undefined || gid === undefined ? null : { uid: Number(uid), gid: Number(gid) };
}

async function mirrorOf({ domain, record: { dev, mirror } }: DeclaredDisk): Promise<Mirror[]> {
  const { image } = mirror;
  if (!('path' in image.source)) return [];
  const { path } = image.source;
  const { stdout } = await runTool('stat', ['--dereference', '--format=%u %g %a', '--', path], { deadlineMs });
  const [, uid, gid, mode = ''] = /^(\d+) (\d+) ([0-7]+)\n$/.exec(stdout) ?? [];
  if (uid === undefined || gid === undefined) return [];
  const owner = { uid: Number(uid), gid: Number(gid) };
  return [{ domain, dev, name: imageName(image), path, owner, mode: parseInt(mode, 8) }];
}

function mayWrite(qemu: Owner, { owner, mode }: Mirror): boolean {
  const readAndWrite = 0o6;
  const shift = qemu.uid === owner.uid ? 6 : qemu.gid === owner.gid ? 3 : 0;
  return ((mode >> shift) & readAndWrite) === readAndWrite;
}
