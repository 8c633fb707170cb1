import { attributeOf, childOf, childrenOf, readXml } from '../../domain/xml.ts';
import { runTool } from '../../storage/run-tool.ts';
import type { Check } from '../check.ts';
import { ok, trouble, type Remark } from '../finding.ts';
import { libvirtDeadlineMs, libvirtOf } from '../host-view.ts';

interface Emulator {
  path: string;
  /** E.g. `7.2.22`; null if it does not say. */
  version: string | null;
  /** What it says when it is asked to make a quorum node; null if it can. */
  quorumProblem: string | null;
}

const deadlineMs = 10_000;

/** A device's drive can be set while it runs from 6.0 on; older than 7.2 was never tried. */
const oldestMajor = 6;

/** Whether the QEMUs that libvirt runs here can have two copies under one disk. */
export const emulatorCheck: Check<Emulator[]> = {
  name: 'emulator',
  async gather(host) {
    return Promise.all(emulatorsIn(await libvirtOf(host).capabilities(libvirtDeadlineMs)).map(ask));
  },
  examine: (emulators) =>
    emulators.length > 0
      ? emulators.flatMap(examineOne)
      : [trouble('error', 'libvirt knows no QEMU on this host', 'there is nothing to protect', 'install QEMU')],
};

function examineOne({ path, version, quorumProblem }: Emulator): Remark[] {
  if (version !== null && Number(version.split('.')[0]) < oldestMajor) {
    const why = "a device's drive can't be changed while it runs";
    return [trouble('error', `${path} is version ${version}`, why, `upgrade QEMU to ${oldestMajor}.0 or later`)];
  }
  if (quorumProblem !== null) {
    const what = `${path} can't make a quorum node: ${quorumProblem}`;
    const why =
      "without the quorum driver, which some builds (RHEL) leave out, a mirror job keeps the copies: its guarantee is relaxed, and policy 'strict' is refused";
    return [trouble('warning', what, why, 'install a QEMU that has it')];
  }
  return [ok(`${path}${version === null ? '' : `, version ${version},`} has the quorum driver`)];
}

/** Those for the host's own architecture, from libvirt's capabilities. */
export function emulatorsIn(capabilities: string): string[] {
  const root = readXml(capabilities);
  const cpu = childOf(childOf(root, 'host') ?? root, 'cpu');
  const hostArch = cpu === null ? null : (childOf(cpu, 'arch')?.text.trim() ?? null);
  const paths = childrenOf(root, 'guest').flatMap((guest) => {
    const arch = childOf(guest, 'arch');
    const emulator = arch === null ? null : childOf(arch, 'emulator');
    return emulator !== null && attributeOf(arch, 'name') === hostArch ? [emulator.text.trim()] : [];
  });
  return [...new Set(paths)];
}

async function ask(path: string): Promise<Emulator> {
  const { stdout } = await runTool(path, ['--version'], { deadlineMs });
  return {
    path,
    version: /version (\d+(?:\.\d+)+)/.exec(stdout)?.[1] ?? null,
    quorumProblem: await quorumProblem(path),
  };
}

/** A last node that can't be made ends QEMU, once it has got over the quorum node. */
async function quorumProblem(path: string): Promise<string | null> {
  const nodes = [
    'driver=null-co,node-name=a',
    'driver=null-co,node-name=b',
    'driver=quorum,node-name=pair,vote-threshold=2,read-pattern=fifo,children.0=a,children.1=b',
    'driver=raw,node-name=end,file=no-such-node',
  ];
  const args = ['-machine', 'none', '-nodefaults', '-display', 'none', ...nodes.flatMap((node) => ['-blockdev', node])];
  const { stderr } = await runTool(path, args, { deadlineMs });
  return stderr.includes('node-name=end') ? null : stderr.trim().slice(0, 300);
}
