import { nbdDefaultPort, pathProblem, textProblem, type NbdSource } from '../domain/image.ts';
import { addressPattern, canonicalHost, printAddress, readAddress } from './address.ts';
import { pathKey } from './file.ts';
import { secretId, type StorageKind } from './kind.ts';
import { badUri, decoded, encodedPath } from './uri.ts';

/** URIs as in the NBD project's doc/uri.md. */
export const nbdKind: StorageKind<NbdSource> = {
  schemes: { nbd: parseTcp, nbds: parseTcp, 'nbd+unix': parseUnix },
  name: printUri,
  key: ({ server, exportName }) => `nbd:${where(server)}:${exportName}`,
  backend: ({ server }) => `nbd:${where(server)}`,
  peer: ({ server }) => ('socket' in server ? 'unix' : { port: server.port }),
  protocol: ({ server, exportName }, access) => ({
    driver: 'nbd',
    server:
      'socket' in server
        ? { type: 'unix', path: server.socket }
        : { type: 'inet', host: server.host, port: String(server.port) },
    export: exportName,
    // A client that reconnects by itself would hide that the server lost acknowledged writes.
    'reconnect-delay': 0,
    ...('tls' in server && { 'tls-creds': secretId(access, 'tls') }),
  }),
  usesTls: ({ server }) => 'tls' in server,
  secrets: () => ({}),
  creation: () => null,
};

const tcpHint =
  'write it as nbd://HOST[:PORT]/EXPORT, with TLS as nbds://, an IPv6 address in brackets, special characters as %XX';
const unixHint = 'write it as nbd+unix:///EXPORT?socket=/absolute/path, special characters as %XX';

const tcpPattern = new RegExp(String.raw`^(nbds?)://${addressPattern}(?:/([^?#]*))?$`, 'i');

function parseTcp(uri: string): NbdSource {
  const match = tcpPattern.exec(uri);
  if (match === null) throw badUri(uri, 'it is not of the form of an NBD URI', tcpHint);
  const [, scheme = '', address, name, portText, exportText = ''] = match;
  const at = readAddress(uri, [address, name, portText], { defaultPort: nbdDefaultPort, hint: tcpHint });
  const tls = scheme.toLowerCase() === 'nbds';
  return { kind: 'nbd', server: { ...at, ...(tls && { tls }) }, exportName: exportNameOf(uri, exportText) };
}

function parseUnix(uri: string): NbdSource {
  const match = /^nbd\+unix:\/\/(?:\/([^?#]*))?(?:\?([^#]*))?$/i.exec(uri);
  if (match === null) throw badUri(uri, 'it is not of the form of an NBD URI for a unix socket', unixHint);
  const [, exportText = '', query = ''] = match;
  const [parameter = '', ...others] = query.split('&');
  const socketText = /^socket=(.*)$/s.exec(parameter)?.[1];
  if (socketText === undefined) throw badUri(uri, 'it has no socket=/path', unixHint);
  if (others.length > 0) throw badUri(uri, 'it has other parameters than socket', unixHint);
  const socket = decoded(uri, socketText);
  const problem = pathProblem(socket);
  if (problem !== null) throw badUri(uri, `its socket is unusable: ${problem}`, unixHint);
  return { kind: 'nbd', server: { socket }, exportName: exportNameOf(uri, exportText) };
}

function exportNameOf(uri: string, text: string): string {
  const name = decoded(uri, text);
  const problem = textProblem(name);
  if (problem !== null)
    throw badUri(uri, `its export's name is unusable: ${problem}`, 'choose another name for the export');
  // NBD_MAX_STRING_SIZE of QEMU's include/block/nbd.h, and the protocol's own limit.
  if (Buffer.byteLength(name) > 4096) {
    throw badUri(uri, "its export's name is longer than 4096 bytes", 'choose another name for the export');
  }
  return name;
}

function printUri({ server, exportName }: NbdSource): string {
  const path = encodedPath(exportName);
  if ('socket' in server) return `nbd+unix:///${path}?socket=${encodedPath(server.socket)}`;
  const at = printAddress(server.host, server.port === nbdDefaultPort ? null : server.port);
  return `${'tls' in server ? 'nbds' : 'nbd'}://${at}/${path}`;
}

function where(server: NbdSource['server']): string {
  return 'socket' in server ? pathKey(server.socket) : `tcp:${canonicalHost(server.host)}:${server.port}`;
}
