import { cpus, loadavg, release, totalmem } from 'node:os';
import { version } from '../../src/control/version.ts';
import { must } from '../lab/run.ts';

/** Under what the figures were measured. */
export async function conditions(): Promise<Record<string, string>> {
  const [cpu] = cpus();
  const firstLine = async (program: string): Promise<string> =>
    (await must(program, '--version')).trim().split('\n')[0] ?? '';
  return {
    date: new Date().toISOString(),
    machine: `${cpus().length} cores of ${cpu?.model ?? 'an unknown CPU'}, ${Math.round(totalmem() / 2 ** 30)} GiB, Linux ${release()}`,
    guests: 'under software emulation (TCG), one virtual CPU',
    versions: [
      `virt-cdp ${version}`,
      await firstLine('qemu-system-x86_64'),
      `libvirt ${await firstLine('virsh')}`,
      await firstLine('nbdkit'),
      `node ${process.versions.node}`,
    ].join(', '),
    load: loadavg()
      .map((one) => one.toFixed(1))
      .join(' '),
  };
}
