import fc from 'fast-check';
import { imageFormats, pathProblem, textProblem, type Image, type Source } from '../../src/domain/image.ts';

const anyText = fc.string({ unit: 'grapheme', maxLength: 20 }).filter((text) => textProblem(text) === null);

const anyPath = fc
  .tuple(fc.constantFrom('/', '//', '/dev/', '/dev/shm/', '/var/lib/'), anyText)
  .map((parts) => parts.join(''))
  .filter((path) => pathProblem(path) === null);

const plain = { noNullPrototype: true };

const anyServer = fc.oneof(
  fc.record(
    {
      host: fc.oneof(
        fc.ipV4(),
        fc.ipV6().filter((address) => !address.includes('.')),
        fc.domain(),
      ),
      port: fc.integer({ min: 1, max: 65535 }),
    },
    plain,
  ),
  fc.record({ socket: anyPath }, plain),
);

const anySource: fc.Arbitrary<Source> = fc.oneof(
  fc.record({ kind: fc.constant('file' as const), path: anyPath }, plain),
  fc.record({ kind: fc.constant('block' as const), path: anyPath }, plain),
  fc.record({ kind: fc.constant('nbd' as const), server: anyServer, exportName: anyText }, plain),
);

/** Any image that virt-cdp can deal with. */
export const anyImage: fc.Arbitrary<Image> = fc.record(
  { source: anySource, format: fc.constantFrom(...imageFormats) },
  plain,
);
