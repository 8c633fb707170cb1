import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { must } from './run.ts';

/**
 * An authority, and certificates of a server on 127.0.0.1 and of a client, under the names that QEMU, libvirt and nbdkit
 * want in one folder: ca-cert.pem, server-cert.pem, server-key.pem, client-cert.pem, client-key.pem.
 */
export async function makeCertificates(folder: string): Promise<string> {
  mkdirSync(folder, { recursive: true });
  const at = (name: string): string => join(folder, name);
  const key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes'];
  await must(
    ...(['openssl', 'req', '-x509', ...key, '-days', '2', '-subj', '/CN=lab authority'] as const),
    ...['-keyout', at('ca-key.pem'), '-out', at('ca-cert.pem')],
    ...['-addext', 'keyUsage=critical,keyCertSign'],
  );
  for (const [role, usage] of [
    ['server', 'serverAuth'],
    ['client', 'clientAuth'],
  ] as const) {
    const extensions = at(`${role}.ext`);
    writeFileSync(extensions, `subjectAltName=IP:127.0.0.1\nextendedKeyUsage=${usage}\nkeyUsage=digitalSignature\n`);
    await must(
      ...(['openssl', 'req', ...key, '-subj', `/CN=lab ${role}`] as const),
      ...['-keyout', at(`${role}-key.pem`), '-out', at(`${role}.csr`)],
    );
    await must(
      ...(['openssl', 'x509', '-req', '-in', at(`${role}.csr`), '-out', at(`${role}-cert.pem`)] as const),
      ...[
        '-CA',
        at('ca-cert.pem'),
        '-CAkey',
        at('ca-key.pem'),
        '-CAcreateserial',
        '-days',
        '2',
        '-extfile',
        extensions,
      ],
    );
  }
  return folder;
}
