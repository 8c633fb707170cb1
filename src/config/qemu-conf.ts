import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';

/**
 * The folder of the certificates with which libvirt lets QEMU speak to NBD servers: what qemu.conf says, else libvirt's defaults
 * (qemu/qemu_conf.c: virQEMUDriverConfigSetDefaults).
 */
export async function nbdCertificates({
  file = '/etc/libvirt/qemu.conf',
  exists = existsSync,
}: { file?: string; exists?: (path: string) => boolean } = {}): Promise<string> {
  const text = await readFile(file, 'utf8').catch(() => '');
  const own = '/etc/pki/libvirt-nbd';
  return (
    valueOf(text, 'nbd_tls_x509_cert_dir') ??
    valueOf(text, 'default_tls_x509_cert_dir') ??
    (exists(own) ? own : '/etc/pki/qemu')
  );
}

/** The last value counts; text in quotes of either kind (util/virconf.c). */
function valueOf(text: string, key: string): string | undefined {
  const lines = text.matchAll(/^[ \t]*(\w+)[ \t]*=[ \t]*(?:"([^"\n]*)"|'([^'\n]*)')/gm);
  return [...lines]
    .filter(([, name]) => name === key)
    .map(([, , double, single]) => double ?? single)
    .at(-1);
}
