import { UsageError } from '../errors.ts';
import { attributeOf, childrenOf, printXml, readXml, type XmlElement } from './xml.ts';

/** The namespace of the status in a running domain's live `<metadata>`, and the prefix under which libvirt shows it. */
export const STATUS_URI = 'https://virt-cdp.org/xmlns/state/1';
export const STATUS_KEY = 'cdp-state';

/** What any libvirt client can see of the protection of a running domain. */
export interface LiveStatus {
  /** The QEMU instance that the status speaks of; a status of another instance is void. */
  instance: string;
  disks: LiveDiskStatus[];
}

export interface LiveDiskStatus {
  dev: string;
  state: string;
  /** ISO time at which the state began. */
  since: string;
  runningOn: string;
  /** The mirror as the user names it. */
  mirror: string;
}

/** The status as virDomainSetMetadata takes it with STATUS_KEY and STATUS_URI: see declarationToXml. */
export function statusToXml(status: LiveStatus): string {
  const disks = status.disks.map(({ dev, state, since, runningOn, mirror }) =>
    printXml('disk', { dev, state, since, 'running-on': runningOn, mirror }),
  );
  return printXml('status', { instance: status.instance }, ...disks);
}

/**
 * Reads a status from what virDomainGetMetadata gives, or from the element as it stands in a domain's XML.
 * @throws UsageError `xml-invalid`, `status-invalid`.
 */
export function statusFromXml(elementXml: string): LiveStatus {
  const status = statusFromElement(readXml(elementXml));
  if (status !== null) return status;
  throw new UsageError({
    code: 'status-invalid',
    message: 'the status in the metadata can not be read: something else than virt-cdp wrote it',
    hint: 'virt-cdpd writes it anew at the next change of state',
  });
}

/** Null if it is not what virt-cdp writes: others may write metadata too, and nothing depends on the status. */
export function statusFromElement(root: XmlElement): LiveStatus | null {
  const instance = attributeOf(root, 'instance');
  if (root.name !== 'status' || !['', STATUS_URI].includes(root.namespace) || instance === null) return null;
  const disks: LiveDiskStatus[] = [];
  for (const element of childrenOf(root, 'disk')) {
    const dev = attributeOf(element, 'dev');
    const state = attributeOf(element, 'state');
    const since = attributeOf(element, 'since');
    const runningOn = attributeOf(element, 'running-on');
    const mirror = attributeOf(element, 'mirror');
    if (dev === null || state === null || since === null || runningOn === null || mirror === null) return null;
    disks.push({ dev, state, since, runningOn, mirror });
  }
  return { instance, disks };
}
