/** libvirt's packets: a length, a header of six words, a payload (src/rpc/virnetprotocol.x). */
import { ProtocolError } from './errors.ts';
import { decode, encode, int, struct, uint } from './xdr.ts';

/** VIR_NET_MESSAGE_MAX, which does not count the length word itself. */
export const maxMessageBytes = 32 * 1024 * 1024;
const lengthBytes = 4;
const headerBytes = 24;

export const packetType = { call: 0, reply: 1, message: 2, stream: 3 } as const;
export const packetStatus = { ok: 0, error: 1, continue: 2 } as const;

export interface PacketHeader {
  program: number;
  version: number;
  procedure: number;
  type: number;
  serial: number;
  status: number;
}

export interface Packet {
  header: PacketHeader;
  payload: Buffer;
}

const headerCodec = struct<PacketHeader>({
  program: uint,
  version: uint,
  procedure: int,
  type: int,
  serial: uint,
  status: int,
});

export function encodePacket({ header, payload }: Packet): Buffer {
  const messageBytes = headerBytes + payload.length;
  if (messageBytes > maxMessageBytes) throw new ProtocolError(`a message of ${messageBytes} bytes`);
  return Buffer.concat([encode(uint, lengthBytes + messageBytes), encode(headerCodec, header), payload]);
}

/** Cuts a stream of bytes, in whatever pieces it arrives, into packets. After a ProtocolError it is of no more use. */
export class PacketSplitter {
  #chunks: Buffer[] = [];
  #bufferedBytes = 0;

  push(chunk: Buffer): Packet[] {
    this.#chunks.push(chunk);
    this.#bufferedBytes += chunk.length;
    const packets: Packet[] = [];
    for (let packet = this.#next(); packet !== null; packet = this.#next()) packets.push(packet);
    return packets;
  }

  #next(): Packet | null {
    if (this.#bufferedBytes < lengthBytes) return null;
    const packetBytes = this.#peek(lengthBytes).readUInt32BE();
    if (packetBytes < lengthBytes + headerBytes || packetBytes > lengthBytes + maxMessageBytes) {
      throw new ProtocolError(`a packet of ${packetBytes} bytes`);
    }
    if (this.#bufferedBytes < packetBytes) return null;
    const packet = this.#peek(packetBytes);
    this.#drop(packetBytes);
    return {
      header: decode(headerCodec, packet.subarray(lengthBytes, lengthBytes + headerBytes)),
      payload: packet.subarray(lengthBytes + headerBytes),
    };
  }

  /** The first bytes in one piece. Joins chunks only when it must, so that a large packet is not copied per chunk. */
  #peek(length: number): Buffer {
    const [first] = this.#chunks;
    if (first === undefined || first.length < length) this.#chunks = [Buffer.concat(this.#chunks)];
    return (this.#chunks[0] ?? Buffer.alloc(0)).subarray(0, length);
  }

  #drop(length: number): void {
    const [first, ...others] = this.#chunks;
    const rest = first?.subarray(length);
    this.#chunks = rest === undefined || rest.length === 0 ? others : [rest, ...others];
    this.#bufferedBytes -= length;
  }
}
