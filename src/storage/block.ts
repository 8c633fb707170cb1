import type { BlockSource } from '../domain/image.ts';
import { isDevicePath, pathKey, pathOfUri, uriOfPath } from './file.ts';
import type { StorageKind } from './kind.ts';

export const blockKind: StorageKind<BlockSource> = {
  // A device outside /dev has no other name; QEMU calls the driver by this one too.
  schemes: { host_device: (uri) => ({ kind: 'block', path: pathOfUri(uri) }) },
  name: ({ path }) => (isDevicePath(path) ? path : uriOfPath('host_device', path)),
  key: ({ path }) => pathKey(path),
  backend: ({ path }) => `device:${path}`,
  protocol: ({ path }) => ({ driver: 'host_device', filename: path, aio: 'threads' }),
  secrets: () => ({}),
  creation: () => null,
};
