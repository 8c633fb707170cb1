/** Bytes that libvirt 9.0 and this client exchanged. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import type { LibvirtErrorParts } from '../../src/libvirt/errors.ts';
import { eventKinds } from '../../src/libvirt/events.ts';
import type { EventKind } from '../../src/libvirt/events.ts';
import { keepaliveProcedure } from '../../src/libvirt/keepalive.ts';
import { PacketSplitter, encodePacket, packetStatus, packetType } from '../../src/libvirt/packet.ts';
import type { Packet } from '../../src/libvirt/packet.ts';
import { procedures, program } from '../../src/libvirt/procedures.ts';
import type { Procedure } from '../../src/libvirt/procedures.ts';
import { errorParts } from '../../src/libvirt/types.ts';
import { decode, encode } from '../../src/libvirt/xdr.ts';

interface CapturedCall {
  procedure: keyof typeof procedures;
  args: unknown;
  result?: unknown;
  error?: LibvirtErrorParts;
  request: string;
  reply: string;
}
interface CapturedEvent {
  kind: keyof typeof eventKinds;
  event: unknown;
  packet: string;
}

function captured(file: string): unknown {
  return JSON.parse(readFileSync(new URL(`captured/${file}`, import.meta.url), 'utf8'));
}

function open(hex: string): Packet {
  const bytes = Buffer.from(hex, 'hex');
  const [packet, ...more] = new PacketSplitter().push(bytes);
  assert.ok(packet !== undefined && more.length === 0);
  assert.deepEqual(encodePacket(packet), bytes);
  return packet;
}

/** As the JSON files have it: nothing is null, bytes are hexadecimal. */
function plain(value: unknown): unknown {
  return Buffer.isBuffer(value) ? value.toString('hex') : (value ?? null);
}

describe('captured from libvirt 9.0', () => {
  const calls = captured('calls.json') as CapturedCall[];

  it('has every procedure', () => {
    assert.deepEqual(new Set(calls.map((call) => call.procedure)), new Set(Object.keys(procedures)));
  });

  for (const call of calls) {
    it(`${call.procedure}: ${call.error === undefined ? 'answer' : `error ${call.error.code}`}`, () => {
      const procedure = procedures[call.procedure] as Procedure<unknown, unknown>;
      const request = open(call.request);
      const args = decode(procedure.args, request.payload);
      assert.deepEqual(plain(args), call.args);
      assert.deepEqual(encode(procedure.args, args), request.payload);
      assert.equal(request.header.program, procedure.program);
      assert.equal(request.header.procedure, procedure.number);

      const { header, payload } = open(call.reply);
      assert.deepEqual(
        { ...header, status: 0 },
        { ...request.header, type: packetType.reply, status: packetStatus.ok },
      );
      if (header.status === packetStatus.ok) assert.deepEqual(plain(decode(procedure.result, payload)), call.result);
      else assert.deepEqual(decode(errorParts, payload), call.error);
    });
  }

  const events = captured('events.json') as CapturedEvent[];

  it('has every kind of event', () => {
    assert.deepEqual(new Set(events.map((event) => event.kind)), new Set(Object.keys(eventKinds)));
  });

  for (const { kind, event, packet } of events) {
    it(`event ${kind}: ${JSON.stringify(event).replace(/^.*?}/, '').slice(1, 60)}`, () => {
      const { header, payload } = open(packet);
      const known = eventKinds[kind] as EventKind<unknown>;
      assert.equal(header.program, known.program);
      assert.equal(header.procedure, known.procedure);
      assert.equal(header.type, packetType.message);
      assert.deepEqual(decode(known.payload, payload), event);
    });
  }

  it('keepalive: a ping of ours and its answer', () => {
    const { ping, pong } = captured('keepalive.json') as { ping: string; pong: string };
    const expected = (procedure: number): Packet => ({
      header: { program: program.keepalive, version: 1, procedure, type: packetType.message, serial: 0, status: 0 },
      payload: Buffer.alloc(0),
    });
    assert.deepEqual(open(ping), expected(keepaliveProcedure.ping));
    assert.deepEqual(open(pong), expected(keepaliveProcedure.pong));
  });
});
