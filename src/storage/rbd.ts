import { rbdNameProblem, type RbdSource } from '../domain/image.ts';
import { canonicalHost, printAddress } from './address.ts';
import { secretId, type Access, type StorageKind } from './kind.ts';
import { badUri, decoded, encodedPath } from './uri.ts';

/** URIs are `rbd:POOL[/NAMESPACE]/IMAGE`: monitors, user and key are then those of librbd's default configuration. */
export const rbdKind: StorageKind<RbdSource> = {
  schemes: { rbd: parse },
  name: (source) => `rbd:${encodedPath(rbdPath(source))}`,
  // Two clusters are told apart by their monitors, as far as they are named; in which order does not matter.
  key: (source) => `rbd:${cluster(source)}:${rbdPath(source)}`,
  backend: (source) => `rbd:${cluster(source)}`,
  secrets: ({ login }) => (login === null ? {} : { login: { type: 'ceph', name: login.secret } }),
  protocol: ({ pool, namespace, image, hosts, login }, access) => ({
    driver: 'rbd',
    pool,
    ...(namespace !== null && { namespace }),
    image,
    ...(access.cephConfig !== null && { conf: access.cephConfig }),
    ...(hosts.length > 0 && { server: hosts.map(({ host, port }) => ({ host, port: String(port ?? 0) })) }),
    ...(login !== null && {
      user: login.username,
      'auth-client-required': ['cephx', 'none'] as ('cephx' | 'none')[],
      'key-secret': secretId(access, 'login'),
    }),
  }),
  creation: (source, access) => ({
    filename: creatableName(source, access),
    options: source.login === null ? [] : [`password-secret=${secretId(access, 'login')}`],
    path: null,
  }),
};

/** QEMU's own way to write it (block/rbd.c: qemu_rbd_parse_filename), in which a backslash takes a character's meaning away. */
function creatableName(source: RbdSource, { cephConfig }: Access): string {
  const escaped = (text: string): string => text.replaceAll(/[\\:/@=]/g, '\\$&');
  const { pool, namespace, image, hosts, login } = source;
  const path = [pool, ...(namespace === null ? [] : [namespace]), image].map(escaped).join('/');
  const settings = {
    ...(login !== null && { id: login.username }),
    ...(cephConfig !== null && { conf: cephConfig }),
    ...(hosts.length > 0 && { mon_host: hosts.map(({ host, port }) => printAddress(host, port)).join(',') }),
  };
  return `rbd:${path}${Object.entries(settings)
    .map(([key, value]) => `:${key}=${escaped(value)}`)
    .join('')}`;
}

const hint =
  'write it as rbd:POOL/IMAGE or rbd:POOL/NAMESPACE/IMAGE, special characters as %XX; what else there is to say, by XML';

function parse(uri: string): RbdSource {
  const match = /^rbd:([^/?#:]+)(?:\/([^/?#:]+))?\/([^/?#:]+)$/i.exec(uri);
  if (match === null) throw badUri(uri, 'it is not of the form of a Ceph RBD URI', hint);
  const [, poolText = '', namespaceText, imageText = ''] = match;
  const named = (what: string, text: string): string => {
    const name = decoded(uri, text);
    const problem = rbdNameProblem(name);
    if (problem !== null) throw badUri(uri, `its ${what} is unusable: ${problem}`, hint);
    return name;
  };
  return {
    kind: 'rbd',
    pool: named('pool', poolText),
    namespace: namespaceText === undefined ? null : named('namespace', namespaceText),
    image: named('image', imageText),
    hosts: [],
    config: null,
    login: null,
  };
}

function rbdPath({ pool, namespace, image }: RbdSource): string {
  return [pool, ...(namespace === null ? [] : [namespace]), image].join('/');
}

function cluster({ hosts, config }: RbdSource): string {
  if (hosts.length === 0) return config ?? '';
  return hosts
    .map(({ host, port }) => `${canonicalHost(host)}:${port ?? ''}`)
    .sort()
    .join(',');
}
