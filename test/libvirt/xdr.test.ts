import assert from 'node:assert/strict';
import fc from 'fast-check';
import { ProtocolError } from '../../src/libvirt/errors.ts';
import { eventKinds } from '../../src/libvirt/events.ts';
import { procedures } from '../../src/libvirt/procedures.ts';
import { errorParts, uuid } from '../../src/libvirt/types.ts';
import {
  array,
  asSafeNumber,
  bool,
  decode,
  encode,
  fixedOpaque,
  flag,
  hyper,
  int,
  opaque,
  optional,
  struct,
  text,
  uhyper,
  uint,
} from '../../src/libvirt/xdr.ts';
import type { Codec } from '../../src/libvirt/xdr.ts';

const words = fc.string({ unit: 'grapheme' }).filter((value) => !value.includes('\0'));
const blob = (constraints: fc.IntArrayConstraints) => fc.uint8Array(constraints).map((value) => Buffer.from(value));
const uuids = fc.uuid();

interface Sample {
  codec: Codec<unknown>;
  values: fc.Arbitrary<unknown>;
}
const sample = <T>(codec: Codec<T>, values: fc.Arbitrary<T>): Sample => ({ codec, values });

const record = struct({ number: int, name: optional(text(100_000)), list: array(uhyper, 10) });
const samples: Record<string, Sample> = {
  int: sample(int, fc.integer({ min: -(2 ** 31), max: 2 ** 31 - 1 })),
  uint: sample(uint, fc.integer({ min: 0, max: 2 ** 32 - 1 })),
  hyper: sample(hyper, fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n })),
  uhyper: sample(uhyper, fc.bigInt({ min: 0n, max: 2n ** 64n - 1n })),
  'safe number': sample(asSafeNumber(hyper), fc.maxSafeInteger()),
  bool: sample(bool, fc.boolean()),
  flag: sample(flag, fc.boolean()),
  opaque: sample(opaque(20), blob({ maxLength: 20 })),
  'fixed opaque': sample(fixedOpaque(7), blob({ minLength: 7, maxLength: 7 })),
  text: sample(text(100_000), words),
  uuid: sample(uuid, uuids),
  optional: sample(optional(text(100_000)), fc.option(words)),
  array: sample(array(int, 9), fc.array(fc.integer({ min: -5, max: 5 }), { maxLength: 9 })),
  struct: sample(
    record,
    fc
      .tuple(fc.nat(), fc.option(words), fc.array(fc.bigInt({ min: 0n, max: 9n }), { maxLength: 10 }))
      .map(([number, name, list]) => ({ number, name, list })),
  ),
};

function decodesOrRefuses(codec: Codec<unknown>, bytes: Buffer): void {
  try {
    decode(codec, bytes);
  } catch (error) {
    assert.ok(error instanceof ProtocolError, String(error));
  }
}

describe('XDR', () => {
  for (const [name, { codec, values }] of Object.entries(samples)) {
    it(`brings any ${name} back as it was, in whole words`, () => {
      fc.assert(
        fc.property(values, (value) => {
          const bytes = encode(codec, value);
          assert.equal(bytes.length % 4, 0);
          assert.deepEqual(decode(codec, bytes), value);
        }),
      );
    });

    it(`refuses any ${name} that is cut off or followed by something`, () => {
      fc.assert(
        fc.property(values, fc.nat(), (value, cut) => {
          const bytes = encode(codec, value);
          assert.throws(() => decode(codec, bytes.subarray(0, cut % bytes.length)), ProtocolError);
          assert.throws(() => decode(codec, Buffer.concat([bytes, Buffer.alloc(1)])), ProtocolError);
        }),
      );
    });
  }

  const codecs = [
    ...Object.values(samples).map(({ codec }) => codec),
    ...Object.values(procedures).flatMap(({ args, result }) => [args, result] as Codec<unknown>[]),
    ...Object.values(eventKinds).map(({ payload }) => payload),
    errorParts as Codec<unknown>,
  ];

  it('meets random bytes with a value or a ProtocolError, whatever is to be read', () => {
    const smallWords = fc
      .array(fc.oneof(fc.nat(3), fc.nat(0xffffffff)), { maxLength: 40 })
      .map((list) => Buffer.concat(list.map((word) => encode(uint, word))));
    fc.assert(
      fc.property(fc.oneof(blob({ maxLength: 200 }), smallWords), (bytes) => {
        for (const codec of codecs) decodesOrRefuses(codec, bytes);
      }),
      { numRuns: 300 },
    );
  });

  it('refuses a length beyond the limit before it reads what follows', () => {
    const announced = Buffer.concat([encode(uint, 21), Buffer.alloc(24)]);
    assert.throws(() => decode(opaque(20), announced), /21 is no length up to 20/);
    assert.throws(() => decode(array(int, 20), announced), /21 is no length up to 20/);
    assert.throws(() => decode(opaque(0xffffffff), encode(uint, 0xffffffff)), ProtocolError);
  });

  it('refuses padding that is not zero', () => {
    assert.throws(() => decode(opaque(20), Buffer.from('0000000161000001', 'hex')), ProtocolError);
  });

  const unsendable: [string, () => unknown][] = [
    ['an int of 2^31', () => encode(int, 2 ** 31)],
    ['a fraction', () => encode(int, 0.5)],
    ['a negative unsigned int', () => encode(uint, -1)],
    ['a hyper of 2^63', () => encode(hyper, 2n ** 63n)],
    ['a negative unsigned hyper', () => encode(uhyper, -1n)],
    ['NaN', () => encode(asSafeNumber(hyper), NaN)],
    ['an overlong string', () => encode(text(3), 'four')],
    ['a string with a NUL', () => encode(text(3), 'a\0b')],
    ['an overlong array', () => encode(array(int, 1), [1, 2])],
    ['opaque of another length', () => encode(fixedOpaque(2), Buffer.alloc(3))],
    ['what is no UUID', () => encode(uuid, 'vm-1')],
  ];
  for (const [name, attempt] of unsendable) {
    it(`does not send ${name}`, () => {
      assert.throws(attempt, ProtocolError);
    });
  }

  it('does not take a size of 2^53 for a number', () => {
    assert.throws(() => decode(asSafeNumber(uhyper), encode(uhyper, 2n ** 53n)), ProtocolError);
  });
});
