/** What several procedures and events have in common on the wire (src/remote/remote_protocol.x). */
import { ProtocolError } from './errors.ts';
import type { LibvirtErrorParts } from './errors.ts';
import { asSafeNumber, fixedOpaque, int, optional, struct, text, uhyper } from './xdr.ts';
import type { Codec, XdrReader } from './xdr.ts';

/** REMOTE_STRING_MAX */
export const string = text(4 * 1024 * 1024);

/** A size or a rate. */
export const bytes = asSafeNumber(uhyper);

export interface DomainRef {
  name: string;
  /** Canonical: dashed, lower case. */
  uuid: string;
  /** -1 if the domain is not running. libvirt finds a domain by its UUID, so a stale id does no harm. */
  id: number;
}

const uuidBytes = fixedOpaque(16);

export const uuid: Codec<string> = {
  write: (to, value) => {
    const digits = value.replaceAll('-', '');
    if (!/^[0-9a-f]{32}$/i.test(digits)) throw new ProtocolError(`"${value}" is no UUID`);
    uuidBytes.write(to, Buffer.from(digits, 'hex'));
  },
  read: (from) =>
    uuidBytes
      .read(from)
      .toString('hex')
      .replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5'),
};

export const domain = struct<DomainRef>({ name: string, uuid, id: int });

export interface SecretRef {
  uuid: string;
  /** See `secretUsage`. */
  usageType: number;
  usageId: string;
}

export const secret = struct<SecretRef>({ uuid, usageType: int, usageId: string });

const typedParameterType = { int: 1, uint: 2, llong: 3, ullong: 4, double: 5, boolean: 6, string: 7 } as const;

/** A virTypedParameter of the only type that this client sends. */
export interface UllongParameter {
  field: string;
  value: number;
}

export const ullongParameter: Codec<UllongParameter> = {
  write: (to, { field, value }) => {
    string.write(to, field);
    int.write(to, typedParameterType.ullong);
    bytes.write(to, value);
  },
  read: (from) => {
    const field = string.read(from);
    const type = int.read(from);
    if (type !== typedParameterType.ullong) throw new ProtocolError(`typed parameter "${field}" of type ${type}`);
    return { field, value: bytes.read(from) };
  },
};

/** A virTypedParameter of any type; only whole numbers are told. */
export interface AnyParameter {
  field: string;
  type: number;
  value: bigint | null;
}

export const anyParameter: Codec<AnyParameter> = {
  write: (to, { field, type, value }) => {
    string.write(to, field);
    int.write(to, type);
    if (type === typedParameterType.int) int.write(to, Number(value));
    else uhyper.write(to, value ?? 0n);
  },
  read: (from) => {
    const field = string.read(from);
    const type = int.read(from);
    return { field, type, value: readValue(from, type) };
  },
};

function readValue(from: XdrReader, type: number): bigint | null {
  switch (type) {
    case typedParameterType.int:
    case typedParameterType.uint:
    case typedParameterType.boolean:
      return BigInt(int.read(from));
    case typedParameterType.llong:
    case typedParameterType.ullong:
      return uhyper.read(from);
    case typedParameterType.double:
      uhyper.read(from);
      return null;
    case typedParameterType.string:
      string.read(from);
      return null;
    default:
      throw new ProtocolError(`a typed parameter of type ${type}`);
  }
}

interface WireError {
  code: number;
  domain: number;
  message: string | null;
  level: number;
  subject: DomainRef | null;
  str1: string | null;
  str2: string | null;
  str3: string | null;
  int1: number;
  int2: number;
  network: { name: string; uuid: string } | null;
}

const wireError = struct<WireError>({
  code: int,
  domain: int,
  message: optional(string),
  level: int,
  subject: optional(domain),
  str1: optional(string),
  str2: optional(string),
  str3: optional(string),
  int1: int,
  int2: int,
  network: optional(struct({ name: string, uuid })),
});

/** virNetMessageError without the fields that carry nothing beyond the sentence. */
export const errorParts: Codec<LibvirtErrorParts> = {
  write: (to, { text: message, ...parts }) => {
    const unused = { subject: null, str1: null, str2: null, str3: null, int1: 0, int2: 0, network: null };
    wireError.write(to, { ...parts, message, ...unused });
  },
  read: (from) => {
    const { code, domain: origin, level, message } = wireError.read(from);
    return { code, domain: origin, level, text: message ?? `error ${code}` };
  },
};
