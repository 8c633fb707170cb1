/**
 * XDR (RFC 4506) as codecs that compose: a codec writes a value and reads it back. Reading is bounded by the bytes that
 * are there and by the protocol's own limits, and throws a ProtocolError for everything else.
 */
import { ProtocolError } from './errors.ts';

export interface Codec<T> {
  write(to: XdrWriter, value: T): void;
  read(from: XdrReader): T;
}

export function encode<T>(codec: Codec<T>, value: T): Buffer {
  const writer = new XdrWriter();
  codec.write(writer, value);
  return writer.bytes();
}

/** The one value that `bytes` hold. Throws a ProtocolError if they hold less, more, or something else. */
export function decode<T>(codec: Codec<T>, bytes: Buffer): T {
  const reader = new XdrReader(bytes);
  const value = codec.read(reader);
  if (reader.left > 0) throw new ProtocolError(`${reader.left} bytes too many`);
  return value;
}

export class XdrWriter {
  readonly #chunks: Buffer[] = [];

  word(value: number): void {
    const chunk = Buffer.allocUnsafe(4);
    chunk.writeUInt32BE(value >>> 0);
    this.#chunks.push(chunk);
  }

  /** The bytes, filled up with zeros to a multiple of four. */
  padded(value: Uint8Array): void {
    this.#chunks.push(Buffer.from(value), Buffer.alloc(paddingOf(value.length)));
  }

  bytes(): Buffer {
    return Buffer.concat(this.#chunks);
  }
}

export class XdrReader {
  readonly #bytes: Buffer;
  #at = 0;

  constructor(bytes: Buffer) {
    this.#bytes = bytes;
  }

  get left(): number {
    return this.#bytes.length - this.#at;
  }

  word(): number {
    return this.#take(4).readUInt32BE();
  }

  padded(length: number): Buffer {
    const value = this.#take(length);
    if (this.#take(paddingOf(length)).some((byte) => byte !== 0)) throw new ProtocolError('padding that is not zero');
    return value;
  }

  #take(length: number): Buffer {
    if (length > this.left) throw new ProtocolError(`${length} bytes expected, ${this.left} left`);
    this.#at += length;
    return this.#bytes.subarray(this.#at - length, this.#at);
  }
}

function paddingOf(length: number): number {
  return (4 - (length % 4)) % 4;
}

function mustFit(fits: boolean, what: string, value: number | bigint): void {
  if (!fits) throw new ProtocolError(`${value.toString()} is no ${what}`);
}

export const int: Codec<number> = {
  write: (to, value) => {
    mustFit(value === (value | 0), 'int', value);
    to.word(value);
  },
  read: (from) => from.word() | 0,
};

export const uint: Codec<number> = {
  write: (to, value) => {
    mustFit(value === value >>> 0, 'unsigned int', value);
    to.word(value);
  },
  read: (from) => from.word(),
};

export const hyper: Codec<bigint> = {
  write: (to, value) => {
    mustFit(value === BigInt.asIntN(64, value), 'hyper', value);
    writeWords(to, value);
  },
  read: (from) => BigInt.asIntN(64, readWords(from)),
};

export const uhyper: Codec<bigint> = {
  write: (to, value) => {
    mustFit(value === BigInt.asUintN(64, value), 'unsigned hyper', value);
    writeWords(to, value);
  },
  read: readWords,
};

function writeWords(to: XdrWriter, value: bigint): void {
  to.word(Number(BigInt.asUintN(32, value >> 32n)));
  to.word(Number(BigInt.asUintN(32, value)));
}

function readWords(from: XdrReader): bigint {
  const high = BigInt(from.word());
  return (high << 32n) | BigInt(from.word());
}

/** A hyper or unsigned hyper for values that in practice are below 2^53: sizes in bytes, seconds, versions. */
export function asSafeNumber(wide: Codec<bigint>): Codec<number> {
  return {
    write: (to, value) => {
      mustFit(Number.isSafeInteger(value), 'safe integer', value);
      wide.write(to, BigInt(value));
    },
    read: (from) => {
      const value = Number(wide.read(from));
      mustFit(Number.isSafeInteger(value), 'safe integer', value);
      return value;
    },
  };
}

/** XDR's bool: 0 or 1. libvirt's own yes and no are `int`s instead, see `flag`. */
export const bool: Codec<boolean> = {
  write: (to, value) => to.word(value ? 1 : 0),
  read: (from) => {
    const word = from.word();
    mustFit(word <= 1, 'bool', word);
    return word === 1;
  },
};

/** C's truth in an int. */
export const flag: Codec<boolean> = {
  write: (to, value) => to.word(value ? 1 : 0),
  read: (from) => from.word() !== 0,
};

export function opaque(maxLength: number): Codec<Buffer> {
  return {
    write: (to, value) => {
      mustFit(value.length <= maxLength, `length of opaque<${maxLength}>`, value.length);
      to.word(value.length);
      to.padded(value);
    },
    read: (from) => from.padded(lengthUpTo(maxLength, from)),
  };
}

export function fixedOpaque(length: number): Codec<Buffer> {
  return {
    write: (to, value) => {
      mustFit(value.length === length, `length of opaque[${length}]`, value.length);
      to.padded(value);
    },
    read: (from) => from.padded(length),
  };
}

/** Bytes that are no UTF-8 (libvirt passes file names on as they are) come out as U+FFFD. */
export function text(maxLength: number): Codec<string> {
  const bytes = opaque(maxLength);
  return {
    write: (to, value) => {
      if (value.includes('\0')) throw new ProtocolError('a string with a NUL in it');
      bytes.write(to, Buffer.from(value));
    },
    read: (from) => bytes.read(from).toString(),
  };
}

export function optional<T>(codec: Codec<T>): Codec<T | null> {
  return {
    write: (to, value) => {
      bool.write(to, value !== null);
      if (value !== null) codec.write(to, value);
    },
    read: (from) => (bool.read(from) ? codec.read(from) : null),
  };
}

export function array<T>(codec: Codec<T>, maxLength: number): Codec<T[]> {
  return {
    write: (to, values) => {
      mustFit(values.length <= maxLength, `length of an array<${maxLength}>`, values.length);
      to.word(values.length);
      for (const value of values) codec.write(to, value);
    },
    read: (from) => {
      const length = lengthUpTo(maxLength, from);
      return Array.from({ length }, () => codec.read(from));
    },
  };
}

function lengthUpTo(maxLength: number, from: XdrReader): number {
  const length = from.word();
  mustFit(length <= maxLength, `length up to ${maxLength}`, length);
  return length;
}

/** The fields in the order in which they are named. */
export function struct<T extends object>(fields: { [K in keyof T]: Codec<T[K]> }): Codec<T> {
  const names = Object.keys(fields) as (keyof T)[];
  return {
    write: (to, value) => {
      for (const name of names) fields[name].write(to, value[name]);
    },
    read: (from) => Object.fromEntries(names.map((name) => [name, fields[name].read(from)])) as T,
  };
}

/** The arguments or the result of a procedure that has none. */
export const nothing: Codec<void> = { write: () => undefined, read: () => undefined };
