import { readFile } from 'node:fs/promises';

/** The process of a running domain's QEMU, as libvirt notes it (src/qemu/qemu_process.c: qemuProcessLaunch); null if it does not. */
export async function qemuPid(domain: string): Promise<number | null> {
  try {
    const pid = Number(await readFile(`/run/libvirt/qemu/${domain}.pid`, 'utf8'));
    return Number.isInteger(pid) && pid > 0 ? pid : null;
  } catch {
    return null;
  }
}
