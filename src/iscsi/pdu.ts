/** The few protocol data units of iSCSI (RFC 3720, section 10) that a login and one SCSI command take. Numbers are big-endian. */

const headerBytes = 48;

/** Opcodes, without the bit that marks a request as immediate. */
export const opcode = {
  scsiCommand: 0x01,
  loginRequest: 0x03,
  logoutRequest: 0x06,
  scsiResponse: 0x21,
  loginResponse: 0x23,
  dataIn: 0x25,
} as const;

export interface Pdu {
  header: Buffer;
  data: Buffer;
}

export function opcodeOf({ header }: Pdu): number {
  return header.readUInt8(0) & 0x3f;
}

/** A PDU whose further fields the caller sets in its header. `flags` is the second byte. */
export function newPdu(
  op: number,
  { flags, immediate }: { flags: number; immediate: boolean },
  data: Buffer = Buffer.alloc(0),
): Pdu {
  const header = Buffer.alloc(headerBytes);
  header.writeUInt8(op | (immediate ? 0x40 : 0), 0);
  header.writeUInt8(flags, 1);
  header.writeUIntBE(data.length, 5, 3);
  return { header, data };
}

/** With the padding that the wire wants. */
export function encode({ header, data }: Pdu): Buffer {
  return Buffer.concat([header, data, Buffer.alloc(padding(data.length))]);
}

/** The first whole PDU of what has been received, and the rest; null if more must come. Digests were not agreed on. */
export function decode(received: Buffer): { pdu: Pdu; rest: Buffer } | null {
  if (received.length < headerBytes) return null;
  const additional = received.readUInt8(4) * 4;
  const length = received.readUIntBE(5, 3);
  const start = headerBytes + additional;
  const end = start + length + padding(length);
  if (received.length < end) return null;
  const pdu = { header: received.subarray(0, headerBytes), data: received.subarray(start, start + length) };
  return { pdu, rest: received.subarray(end) };
}

/** key=value pairs, each ended by a zero byte. */
export function encodeText(pairs: Record<string, string>): Buffer {
  return Buffer.from(
    Object.entries(pairs)
      .map(([key, value]) => `${key}=${value}\0`)
      .join(''),
  );
}

export function decodeText(data: Buffer): Map<string, string> {
  const pairs = data
    .toString('utf8')
    .split('\0')
    .filter((pair) => pair.includes('='));
  return new Map(pairs.map((pair) => [pair.slice(0, pair.indexOf('=')), pair.slice(pair.indexOf('=') + 1)]));
}

/** A binary value as text carries it: hexadecimal or base64 by its prefix (RFC 3720, 5.1). */
export function binaryValue(text: string): Buffer {
  const digits = text.slice(2);
  if (/^0b/i.test(text)) return Buffer.from(digits, 'base64');
  return Buffer.from(digits.length % 2 === 0 ? digits : `0${digits}`, 'hex');
}

/** The simple forms of SAM-5: one byte for up to 255, two for up to 16383. */
export function encodeLun(lun: number): Buffer {
  const encoded = Buffer.alloc(8);
  encoded.writeUInt16BE(lun < 256 ? lun : 0x4000 | lun);
  return encoded;
}

function padding(length: number): number {
  return (4 - (length % 4)) % 4;
}
