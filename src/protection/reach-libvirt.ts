import { CdpError } from '../errors.ts';
import type { LibvirtSession } from '../libvirt/session.ts';

/** Waits for libvirt, at most so long. @throws CdpError `libvirt-unreachable` */
export async function reachLibvirt(session: LibvirtSession, socketPath: string, deadlineMs: number): Promise<void> {
  if (session.state === 'connected') return;
  let stop = (): void => undefined;
  const connected = new Promise<void>((resolve, reject) => {
    const timer = setTimeout(() => reject(libvirtUnreachable(socketPath)), deadlineMs);
    const unsubscribe = session.onConnected(resolve);
    stop = () => {
      clearTimeout(timer);
      unsubscribe();
    };
  });
  await connected.finally(() => stop());
}

function libvirtUnreachable(socket: string): CdpError {
  return new CdpError({
    code: 'libvirt-unreachable',
    message: `libvirt does not answer on ${socket}`,
    hint: 'systemctl status libvirtd (or virtqemud); another socket is named by libvirt.socket in the configuration',
  });
}
