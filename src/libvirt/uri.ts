/** A daemon on this host, by its socket, as virsh takes it. */
export function socketUri(socketPath: string): string {
  return `qemu+unix:///system?socket=${encodeURIComponent(socketPath)}`;
}
