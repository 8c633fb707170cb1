import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import {
  imageFormats,
  iscsiNameProblem,
  rbdNameProblem,
  pathProblem,
  textProblem,
  type Image,
  type Source,
} from '../../src/domain/image.ts';
import { ImageOpener } from '../../src/storage/opener.ts';

/** For images that need no secret. */
export const withoutSecrets = new ImageOpener({
  readSecret: () => Promise.reject(new Error('no secret was to be read')),
  timeoutMs: () => 5_000,
  folder: join(tmpdir(), 'virt-cdp-test'),
  certificates: () => Promise.reject(new Error('no certificates were to be used')),
});

const anyText = fc.string({ unit: 'grapheme', maxLength: 20 }).filter((text) => textProblem(text) === null);

const anyPath = fc
  .tuple(fc.constantFrom('/', '//', '/dev/', '/dev/shm/', '/var/lib/'), anyText)
  .map((parts) => parts.join(''))
  .filter((path) => pathProblem(path) === null);

const plain = { noNullPrototype: true };

const anyHost = fc.oneof(
  fc.ipV4(),
  fc.ipV6().filter((address) => !address.includes('.')),
  fc.domain(),
);

const anyPort = fc.integer({ min: 1, max: 65535 });

const anyServer = fc.oneof(
  fc.record(
    {
      host: anyHost,
      port: anyPort,
    },
    plain,
  ),
  fc.record({ host: anyHost, port: anyPort, tls: fc.constant(true as const) }, plain),
  fc.record({ socket: anyPath }, plain),
);

const anyLogin = fc.option(
  fc.record(
    {
      username: anyText.filter((text) => text !== ''),
      secret: fc.oneof(
        fc.record({ uuid: fc.uuid() }, plain),
        fc.record({ usage: anyText.filter((text) => text !== '') }, plain),
      ),
    },
    plain,
  ),
);

const anyTarget = anyText
  .map((text) => `iqn.2026-01.org.example:${text}`)
  .filter((name) => iscsiNameProblem(name) === null);

const anyRbdName = anyText.filter((text) => rbdNameProblem(text) === null);

const anySource: fc.Arbitrary<Source> = fc.oneof(
  fc.record({ kind: fc.constant('file' as const), path: anyPath }, plain),
  fc.record({ kind: fc.constant('block' as const), path: anyPath }, plain),
  fc.record({ kind: fc.constant('nbd' as const), server: anyServer, exportName: anyText }, plain),
  fc.record(
    {
      kind: fc.constant('iscsi' as const),
      host: anyHost,
      port: anyPort,
      target: anyTarget,
      lun: fc.integer({ min: 0, max: 16383 }),
      initiator: fc.option(anyTarget),
      login: anyLogin,
    },
    plain,
  ),
  fc.record(
    {
      kind: fc.constant('rbd' as const),
      pool: anyRbdName,
      namespace: fc.option(anyRbdName),
      image: anyRbdName,
      hosts: fc.array(fc.record({ host: anyHost, port: fc.option(anyPort) }, plain), { maxLength: 3 }),
      config: fc.option(anyPath),
      login: anyLogin,
    },
    plain,
  ),
);

/** Any image that virt-cdp can deal with. */
export const anyImage: fc.Arbitrary<Image> = fc.record(
  { source: anySource, format: fc.constantFrom(...imageFormats) },
  plain,
);
