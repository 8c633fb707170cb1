import { isIPv6 } from 'node:net';
import { hostProblem, isPort } from '../domain/image.ts';
import { badUri } from './uri.ts';

/** A host and a port in a regular expression: an IPv6 address in brackets or a name, and what follows a colon. */
export const addressPattern = String.raw`(?:\[([^\]]*)\]|([^/:?#@[\]]*))(?::([^/?#]*))?`;

/** What addressPattern captures. */
export type AddressParts = [address: string | undefined, name: string | undefined, port: string | undefined];

/** @throws UsageError `image-uri-invalid`. */
export function readAddress(
  uri: string,
  [address, name, portText]: AddressParts,
  { defaultPort, hint }: { defaultPort: number; hint: string },
): { host: string; port: number } {
  const host = address ?? name ?? '';
  if (host === '') throw badUri(uri, 'it names no host', hint);
  const problem = address !== undefined && !isIPv6(address) ? 'it is not an IPv6 address' : hostProblem(host);
  if (problem !== null) throw badUri(uri, `the host '${host}' is unusable: ${problem}`, hint);
  const port = portText === undefined ? defaultPort : /^\d+$/.test(portText) ? Number(portText) : NaN;
  if (!isPort(port)) {
    const what = `the port '${portText ?? ''}' is not a number from 1 to 65535`;
    throw badUri(uri, what, `leave it out for ${defaultPort}`);
  }
  return { host, port };
}

/** As a URI has them; without a port if it is null. */
export function printAddress(host: string, port: number | null): string {
  const name = host.includes(':') ? `[${host}]` : host;
  return port === null ? name : `${name}:${port}`;
}

/** One text for all ways to write a host's address, and for all of the loopback's. */
export function canonicalHost(host: string): string {
  const name = isIPv6(host) ? new URL(`http://[${host}]`).hostname : host.toLowerCase();
  return name === '[::1]' || name.startsWith('127.') ? 'localhost' : name;
}
