import assert from 'node:assert/strict';
import fc from 'fast-check';
import { ProtocolError } from '../../src/libvirt/errors.ts';
import { PacketSplitter, encodePacket, maxMessageBytes } from '../../src/libvirt/packet.ts';
import type { Packet } from '../../src/libvirt/packet.ts';

const signed = fc.integer({ min: -(2 ** 31), max: 2 ** 31 - 1 });
const unsigned = fc.integer({ min: 0, max: 2 ** 32 - 1 });
const headers = fc.tuple(unsigned, unsigned, signed, signed, unsigned, signed);
const payloads = fc.uint8Array({ maxLength: 60 });
const packets = fc
  .tuple(headers, payloads)
  .map(([[program, version, procedure, type, serial, status], payload]): Packet => ({
    header: { program, version, procedure, type, serial, status },
    payload: Buffer.from(payload),
  }));

function cut(bytes: Buffer, lengths: number[]): Buffer[] {
  const chunks: Buffer[] = [];
  let at = 0;
  for (const length of lengths) {
    chunks.push(bytes.subarray(at, at + length));
    at += length;
  }
  return [...chunks, bytes.subarray(at)];
}

describe('packet splitter', () => {
  it('finds the same packets however the bytes are cut', () => {
    fc.assert(
      fc.property(fc.array(packets, { maxLength: 8 }), fc.array(fc.nat(50), { maxLength: 60 }), (sent, lengths) => {
        const splitter = new PacketSplitter();
        const chunks = cut(Buffer.concat(sent.map(encodePacket)), lengths);
        assert.deepEqual(
          chunks.flatMap((chunk) => splitter.push(chunk)),
          sent,
        );
      }),
    );
  });

  it('meets random bytes with packets or a ProtocolError', () => {
    fc.assert(
      fc.property(fc.array(fc.uint8Array({ maxLength: 40 }), { maxLength: 10 }), (chunks) => {
        const splitter = new PacketSplitter();
        try {
          for (const chunk of chunks) splitter.push(Buffer.from(chunk));
        } catch (error) {
          assert.ok(error instanceof ProtocolError, String(error));
        }
      }),
    );
  });

  const word = (value: number): Buffer => {
    const bytes = Buffer.alloc(4);
    bytes.writeUInt32BE(value);
    return bytes;
  };

  it('refuses a packet shorter than its header', () => {
    assert.throws(() => new PacketSplitter().push(word(27)), ProtocolError);
  });

  it('refuses a packet above the limit as soon as it is announced', () => {
    assert.throws(() => new PacketSplitter().push(word(maxMessageBytes + 5)), ProtocolError);
    assert.deepEqual(new PacketSplitter().push(word(maxMessageBytes + 4)), []);
  });

  it('carries a packet of exactly the limit, and sends none above it', () => {
    const header = { program: 1, version: 1, procedure: 1, type: 0, serial: 1, status: 0 };
    const largest = { header, payload: Buffer.alloc(maxMessageBytes - 24) };
    assert.equal(new PacketSplitter().push(encodePacket(largest))[0]?.payload.length, maxMessageBytes - 24);
    assert.throws(() => encodePacket({ header, payload: Buffer.alloc(maxMessageBytes - 23) }), ProtocolError);
  });
});
