import { readFileSync } from 'node:fs';

/**
 * The process of a running domain's QEMU, as libvirt notes it (src/qemu/qemu_process.c: qemuProcessLaunch); null if it does not. Read
 * at once, from memory: node's threads for files may all wait for a store that hangs.
 */
export function qemuPid(domain: string): number | null {
  try {
    const pid = Number(readFileSync(`/run/libvirt/qemu/${domain}.pid`, 'utf8'));
    return Number.isInteger(pid) && pid > 0 ? pid : null;
  } catch {
    return null;
  }
}
