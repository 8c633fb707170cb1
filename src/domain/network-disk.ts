import {
  iscsiDefaultPort,
  iscsiNameProblem,
  isLun,
  isPort,
  rbdNameProblem,
  textProblem,
  type IscsiSource,
  type Login,
  type RbdSource,
  type SecretName,
} from './image.ts';
import { pathFrom, serverName, Unsupported } from './source-parts.ts';
import { attributeOf, childOf, childrenOf, printXml, type XmlElement } from './xml.ts';

/** The `<source>` elements of network storage with logins, as libvirt's docs/formatdomain has them. */

export function printIscsi({ host, port, target, lun, initiator, login }: IscsiSource): string {
  return printXml(
    'source',
    { protocol: 'iscsi', name: `${target}/${lun}` },
    printXml('host', { name: host, port: String(port) }),
    ...(initiator === null ? [] : [printXml('initiator', {}, printXml('iqn', { name: initiator }))]),
    ...printLogin(login, 'iscsi'),
  );
}

/** @throws Unsupported */
export function readIscsi(source: XmlElement, disk: XmlElement): IscsiSource {
  const [host, ...others] = childrenOf(source, 'host');
  if (host === undefined) throw new Unsupported('its iSCSI portal is not named');
  if (others.length > 0) throw new Unsupported('it names several iSCSI portals');
  requireTcp(host);
  const port = Number(attributeOf(host, 'port') ?? iscsiDefaultPort);
  if (!isPort(port)) throw new Unsupported("its iSCSI portal's port is not between 1 and 65535");
  // Libvirt too takes a name without a LUN as LUN 0 (qemuBlockStorageSourceGetISCSIProps in qemu/qemu_block.c).
  const [, target = '', lunText = '0'] = /^([^/]*)(?:\/(.*))?$/s.exec(attributeOf(source, 'name') ?? '') ?? [];
  const initiator = attributeOf(childOf(childOf(source, 'initiator') ?? source, 'iqn'), 'name');
  for (const name of [target, ...(initiator === null ? [] : [initiator])]) {
    const problem = iscsiNameProblem(name);
    if (problem !== null) throw new Unsupported(`the iSCSI name '${name}' is unusable: ${problem}`);
  }
  const lun = /^\d+$/.test(lunText) ? Number(lunText) : NaN;
  if (!isLun(lun)) throw new Unsupported(`its LUN '${lunText}' is not a number from 0 to 16383`);
  return {
    kind: 'iscsi',
    host: serverName(host),
    port,
    target,
    lun,
    initiator,
    login: readLogin(source, disk, 'iscsi'),
  };
}

export function printRbd({ pool, namespace, image, hosts, config, login }: RbdSource): string {
  return printXml(
    'source',
    { protocol: 'rbd', name: [pool, ...(namespace === null ? [] : [namespace]), image].join('/') },
    ...hosts.map(({ host, port }) => printXml('host', { name: host, port: port === null ? null : String(port) })),
    ...(config === null ? [] : [printXml('config', { file: config })]),
    ...printLogin(login, 'ceph'),
  );
}

/** @throws Unsupported */
export function readRbd(source: XmlElement, disk: XmlElement): RbdSource {
  if (childOf(source, 'snapshot') !== null) throw new Unsupported('it is a snapshot of an RBD image');
  const parts = (attributeOf(source, 'name') ?? '').split('/');
  const problem = parts.map(rbdNameProblem).find((each) => each !== null);
  if (parts.length < 2 || parts.length > 3 || problem !== undefined) {
    throw new Unsupported(
      `its RBD name is not pool/image or pool/namespace/image${problem === undefined ? '' : `: ${problem}`}`,
    );
  }
  const [pool = '', ...rest] = parts;
  const image = rest.at(-1) ?? '';
  const config = childOf(source, 'config');
  return {
    kind: 'rbd',
    pool,
    namespace: rest.length === 2 ? (rest[0] ?? '') : null,
    image,
    hosts: childrenOf(source, 'host').map(readMonitor),
    config: config === null ? null : pathFrom(config, 'file'),
    login: readLogin(source, disk, 'ceph'),
  };
}

function readMonitor(host: XmlElement): RbdSource['hosts'][number] {
  requireTcp(host);
  const portText = attributeOf(host, 'port');
  const port = portText === null ? null : Number(portText);
  if (port !== null && !isPort(port)) throw new Unsupported("a Ceph monitor's port is not between 1 and 65535");
  return { host: serverName(host), port };
}

function requireTcp(host: XmlElement): void {
  const transport = attributeOf(host, 'transport') ?? 'tcp';
  if (transport !== 'tcp') throw new Unsupported(`the transport '${transport}' is not supported`);
}

function printLogin(login: Login | null, type: 'iscsi' | 'ceph'): string[] {
  if (login === null) return [];
  return [printXml('auth', { username: login.username }, printXml('secret', { type, ...login.secret }))];
}

/** Libvirt keeps an `<auth>` where it was written: in the source, or, as of old, in the disk. */
function readLogin(source: XmlElement, disk: XmlElement, type: 'iscsi' | 'ceph'): Login | null {
  const auth = childOf(source, 'auth') ?? childOf(disk, 'auth');
  if (auth === null) return null;
  const username = attributeOf(auth, 'username') ?? '';
  const problem = username === '' ? 'it is empty' : textProblem(username);
  if (problem !== null) throw new Unsupported(`its user name is unusable: ${problem}`);
  const secret = childOf(auth, 'secret');
  if (secret === null || (attributeOf(secret, 'type') ?? type) !== type) {
    throw new Unsupported(`its <auth> names no <secret type='${type}'>`);
  }
  return { username, secret: readSecretName(secret) };
}

/** What a `<secret>` names. @throws Unsupported */
export function readSecretName(secret: XmlElement): SecretName {
  const [uuid, usage] = [attributeOf(secret, 'uuid'), attributeOf(secret, 'usage')];
  if (uuid !== null && usage === null && /^[0-9a-f-]{32,36}$/i.test(uuid)) return { uuid };
  if (usage !== null && usage !== '' && uuid === null) return { usage };
  throw new Unsupported('its <secret> is not named by one of uuid and usage');
}
