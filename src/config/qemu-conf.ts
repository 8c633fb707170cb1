import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';

const qemuConf = '/etc/libvirt/qemu.conf';

/**
 * The folder of the certificates with which libvirt lets QEMU speak to NBD servers: what qemu.conf says, else libvirt's defaults
 * (qemu/qemu_conf.c: virQEMUDriverConfigSetDefaults).
 */
export async function nbdCertificates({
  file = qemuConf,
  exists = existsSync,
}: { file?: string; exists?: (path: string) => boolean } = {}): Promise<string> {
  const text = await read(file);
  const own = '/etc/pki/libvirt-nbd';
  return (
    valueOf(text, 'nbd_tls_x509_cert_dir') ??
    valueOf(text, 'default_tls_x509_cert_dir') ??
    (exists(own) ? own : '/etc/pki/qemu')
  );
}

/** Whether libvirt makes QEMU's user the owner of the files that it opens: `dynamic_ownership`, 1 by default. */
export async function givesQemuItsFiles(file = qemuConf): Promise<boolean> {
  return valueOf(await read(file), 'dynamic_ownership') !== '0';
}

const read = (file: string): Promise<string> => readFile(file, 'utf8').catch(() => '');

/** The last value counts; a number, or text in quotes of either kind (util/virconf.c). */
function valueOf(text: string, key: string): string | undefined {
  const lines = text.matchAll(/^[ \t]*(\w+)[ \t]*=[ \t]*(?:"([^"\n]*)"|'([^'\n]*)'|(\d+))/gm);
  return [...lines]
    .filter(([, name]) => name === key)
    .map(([, , double, single, number]) => double ?? single ?? number)
    .at(-1);
}
