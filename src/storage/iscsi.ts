import { iscsiDefaultPort, iscsiNameProblem, isLun, textProblem, type IscsiSource } from '../domain/image.ts';
import { addressPattern, canonicalHost, printAddress, readAddress } from './address.ts';
import { secretId, type StorageKind } from './kind.ts';
import { badUri, decoded } from './uri.ts';

/**
 * URIs as QEMU's and libiscsi's, but that a password can't be in one: with a user, it is the libvirt secret of type iscsi whose
 * usage is the target's name.
 */
export const iscsiKind: StorageKind<IscsiSource> = {
  schemes: { iscsi: parse },
  name: print,
  key: ({ host, port, target, lun }) => `iscsi:${canonicalHost(host)}:${port}:${target.toLowerCase()}:${lun}`,
  backend: ({ host, port }) => `iscsi:${canonicalHost(host)}:${port}`,
  peer: ({ port }) => ({ port }),
  secrets: ({ login }) => (login === null ? {} : { login: { type: 'iscsi', name: login.secret } }),
  protocol: ({ host, port, target, lun, initiator, login }, access) => ({
    driver: 'iscsi',
    transport: 'tcp',
    portal: printAddress(host, port),
    target,
    lun,
    timeout: Math.max(1, Math.round(access.timeoutMs / 1000)),
    ...(login !== null && { user: login.username, 'password-secret': secretId(access, 'login') }),
    ...(initiator !== null && { 'initiator-name': initiator }),
  }),
  creation: () => null,
};

const hint = 'write it as iscsi://[USER@]HOST[:PORT]/TARGET/LUN, an IPv6 address in brackets';

const pattern = new RegExp(String.raw`^iscsi://(?:([^/?#@[\]]*)@)?${addressPattern}/([^/?#]+)(?:/([^/?#]*))?$`, 'i');

function parse(uri: string): IscsiSource {
  const match = pattern.exec(uri);
  if (match === null) throw badUri(uri, 'it is not of the form of an iSCSI URI', hint);
  const [, userText, address, name, portText, targetText = '', lunText = '0'] = match;
  const { host, port } = readAddress(uri, [address, name, portText], { defaultPort: iscsiDefaultPort, hint });
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
  const where = printAddress(host, port === iscsiDefaultPort ? null : port);
  return `iscsi://${user}${where}/${encodeURIComponent(target).replaceAll('%3A', ':')}/${lun}`;
}
