import { isIPv6 } from 'node:net';
import {
  hostProblem,
  iscsiDefaultPort,
  iscsiNameProblem,
  isLun,
  isPort,
  textProblem,
  type IscsiSource,
} from '../domain/image.ts';
import { badUri, canonicalHost, decoded, secretId, type StorageKind } from './kind.ts';

/**
 * URIs as QEMU's and libiscsi's, but that a password can't be in one: with a user, it is the libvirt secret of type iscsi whose
 * usage is the target's name.
 */
export const iscsiKind: StorageKind<IscsiSource> = {
  schemes: { iscsi: parse },
  name: print,
  key: ({ host, port, target, lun }) => `iscsi:${canonicalHost(host)}:${port}:${target.toLowerCase()}:${lun}`,
  backend: ({ host, port }) => `iscsi:${canonicalHost(host)}:${port}`,
  secrets: ({ login }) => (login === null ? {} : { login: { type: 'iscsi', name: login.secret } }),
  protocol: ({ host, port, target, lun, initiator, login }, access) => ({
    driver: 'iscsi',
    transport: 'tcp',
    portal: portal(host, port),
    target,
    lun,
    timeout: Math.max(1, Math.round(access.timeoutMs / 1000)),
    ...(login !== null && { user: login.username, 'password-secret': secretId(access, 'login') }),
    ...(initiator !== null && { 'initiator-name': initiator }),
  }),
  creation: () => null,
};

const hint = 'write it as iscsi://[USER@]HOST[:PORT]/TARGET/LUN, an IPv6 address in brackets';

function parse(uri: string): IscsiSource {
  const match =
    /^iscsi:\/\/(?:([^/?#@[\]]*)@)?(?:\[([^\]]*)\]|([^/:?#@[\]]*))(?::([^/?#]*))?\/([^/?#]+)(?:\/([^/?#]*))?$/i.exec(
      uri,
    );
  if (match === null) throw badUri(uri, 'it is not of the form of an iSCSI URI', hint);
  const [, userText, address, name = '', portText, targetText = '', lunText = '0'] = match;
  const host = address ?? name;
  if (host === '') throw badUri(uri, 'it names no host', hint);
  const hostIs = address !== undefined && !isIPv6(address) ? 'it is not an IPv6 address' : hostProblem(host);
  if (hostIs !== null) throw badUri(uri, `the host '${host}' is unusable: ${hostIs}`, hint);
  const port = portText === undefined ? iscsiDefaultPort : /^\d+$/.test(portText) ? Number(portText) : NaN;
  if (!isPort(port)) throw badUri(uri, `the port '${portText ?? ''}' is not a number from 1 to 65535`, hint);
  const target = decoded(uri, targetText);
  const targetIs = iscsiNameProblem(target);
  if (targetIs !== null) throw badUri(uri, `the target '${target}' is unusable: ${targetIs}`, hint);
  const lun = /^\d+$/.test(lunText) ? Number(lunText) : NaN;
  if (!isLun(lun)) throw badUri(uri, `the LUN '${lunText}' is not a number from 0 to 16383`, hint);
  return { kind: 'iscsi', host, port, target, lun, initiator: null, login: loginOf(uri, userText, target) };
}

function loginOf(uri: string, userText: string | undefined, target: string): IscsiSource['login'] {
  if (userText === undefined) return null;
  if (/[:%](?![0-9a-f]{2})/i.test(userText)) {
    throw badUri(
      uri.replace(userText, '...'),
      'a password can not be in it',
      `make it a libvirt secret of type iscsi with the usage '${target}', and give USER@ alone`,
    );
  }
  const username = decoded(uri, userText);
  const problem = username === '' ? 'it is empty' : textProblem(username);
  if (problem !== null) throw badUri(uri, `the user is unusable: ${problem}`, hint);
  return { username, secret: { usage: target } };
}

function print({ host, port, target, lun, login }: IscsiSource): string {
  const user = login === null ? '' : `${encodeURIComponent(login.username)}@`;
  const where = port === iscsiDefaultPort ? bracketed(host) : portal(host, port);
  return `iscsi://${user}${where}/${encodeURIComponent(target).replaceAll('%3A', ':')}/${lun}`;
}

function portal(host: string, port: number): string {
  return `${bracketed(host)}:${port}`;
}

function bracketed(host: string): string {
  return host.includes(':') ? `[${host}]` : host;
}
