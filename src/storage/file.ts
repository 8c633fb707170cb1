import { posix } from 'node:path';
import { pathProblem, type FileSource } from '../domain/image.ts';
import { mountPointOf } from './mounts.ts';
import type { StorageKind } from './kind.ts';
import { badUri, decoded, encodedPath } from './uri.ts';

export const fileKind: StorageKind<FileSource> = {
  schemes: { file: (uri) => ({ kind: 'file', path: pathOfUri(uri) }) },
  name: ({ path }) => (isDevicePath(path) ? uriOfPath('file', path) : path),
  key: ({ path }) => pathKey(path),
  backend: ({ path }) => `mount:${mountPointOf(path)}`,
  protocol: ({ path }) => ({ driver: 'file', filename: path, aio: 'threads' }),
  secrets: () => ({}),
  creation: ({ path }) => ({ filename: path, options: [], path }),
};

/** By its name a path below /dev is a block device's; /dev/shm is a file system. */
export function isDevicePath(path: string): boolean {
  return path.startsWith('/dev/') && !path.startsWith('/dev/shm/');
}

/** A file and a device of one path are one thing. */
export function pathKey(path: string): string {
  return `path:${posix.normalize(path).replace(/^\/\//, '/')}`;
}

/** The path of `SCHEME:/path` or `SCHEME:///path`. */
export function pathOfUri(uri: string): string {
  const scheme = uri.slice(0, uri.indexOf(':'));
  const hint = `write it as ${scheme}:/absolute/path, with ? as %3F, # as %23 and % as %25`;
  const match = /^[^:]*:(?:\/\/(?:localhost)?(\/[^?#]*)|(\/(?!\/)[^?#]*))$/i.exec(uri);
  const path = decoded(uri, match?.[1] ?? match?.[2] ?? '');
  if (path === '') throw badUri(uri, 'it has no absolute path', hint);
  return usablePath(uri, path);
}

/** What pathOfUri reads as this path. */
export function uriOfPath(scheme: string, path: string): string {
  const authority = path.startsWith('//') ? '//' : '';
  return `${scheme}:${authority}${encodedPath(path)}`;
}

export function usablePath(uri: string, path: string): string {
  const problem = pathProblem(path);
  if (problem !== null) throw badUri(uri, problem, 'name an image by its absolute path');
  return path;
}
