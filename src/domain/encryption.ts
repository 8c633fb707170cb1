import type { Image, SecretName } from './image.ts';
import { readSecretName } from './network-disk.ts';
import { Unsupported } from './source-parts.ts';
import { attributeOf, childOf, printXml, type XmlElement } from './xml.ts';

/** What is encrypted at rest would be copied to where it is not. */
export function wouldBeInClear(disk: Image, copy: Image): boolean {
  return disk.encryption !== undefined && copy.encryption === undefined;
}

/** A `<source>` element with the `<encryption>` that its image has. */
export function encrypted(sourceXml: string, encryption: Image['encryption']): string {
  if (encryption === undefined) return sourceXml;
  const element = printXml(
    'encryption',
    { format: 'luks' },
    printXml('secret', { type: 'passphrase', ...encryption.secret }),
  );
  return sourceXml.endsWith('/>')
    ? `${sourceXml.slice(0, -2)}>${element}</source>`
    : sourceXml.replace(/<\/source>$/, `${element}</source>`);
}

/**
 * Libvirt takes an `<encryption>` in the source, or, as of old, in the disk.
 * @throws Unsupported for formats other than LUKS 1, which is the only one that QEMU writes.
 */
export function readEncryption(disk: XmlElement): { secret: SecretName } | null {
  const source = childOf(disk, 'source');
  const encryption = (source === null ? null : childOf(source, 'encryption')) ?? childOf(disk, 'encryption');
  if (encryption === null) return null;
  const format = attributeOf(encryption, 'format');
  if (format !== 'luks')
    throw new Unsupported(`its encryption has the format '${format ?? ''}', and only luks is supported`);
  const engine = attributeOf(encryption, 'engine') ?? 'qemu';
  if (engine !== 'qemu') throw new Unsupported(`its encryption is done by '${engine}', not by QEMU`);
  const [secret, ...others] = encryption.children.filter(({ name }) => name === 'secret');
  if (secret === undefined) throw new Unsupported('its encryption names no secret');
  if (others.length > 0) throw new Unsupported('its encryption names several secrets');
  return { secret: readSecretName(secret) };
}
