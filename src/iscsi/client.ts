import { createHash, randomBytes } from 'node:crypto';
import { connect, type Socket } from 'node:net';
import {
  binaryValue,
  decode,
  decodeText,
  encode,
  encodeLun,
  encodeText,
  newPdu,
  opcode,
  opcodeOf,
  type Pdu,
} from './pdu.ts';

/** A LUN and who logs in to it. */
export interface LunAddress {
  host: string;
  port: number;
  target: string;
  lun: number;
  initiator: string;
  /** CHAP; the target does not prove itself in return, as with QEMU's initiator. */
  login: { username: string; password: Buffer } | null;
}

/** What went wrong on the way to a LUN, as a sentence without secrets. */
export class IscsiError extends Error {}

/**
 * Whether the LUN says that it has a write cache (WCE of the caching mode page, SBC-3 6.5.5): what it has acknowledged it may then
 * lose with its power. Null if it has no such page. A session of its own, which ends with the answer.
 * @throws IscsiError also when the deadline passes.
 */
export async function hasWriteCache(address: LunAddress, deadlineMs: number): Promise<boolean | null> {
  const socket = connect({ host: address.host, port: address.port });
  const timer = setTimeout(() => socket.destroy(new IscsiError(`no answer within ${deadlineMs} ms`)), deadlineMs);
  try {
    const session = new Session(socket, address);
    await session.login();
    const page = await session.modePage(cachingPage);
    session.logout();
    return page === null ? null : (page.readUInt8(2) & writeCacheEnabled) !== 0;
  } catch (error) {
    throw error instanceof IscsiError ? error : new IscsiError((error as Error).message, { cause: error });
  } finally {
    clearTimeout(timer);
    socket.end();
    socket.destroySoon();
  }
}

const cachingPage = 0x08;
const writeCacheEnabled = 0x04;

const stage = { security: 0, operational: 1, fullFeature: 3 } as const;
const transit = 0x80;

/** CHAP with MD5, which every target speaks (RFC 3720, 11.1.4). */
const chapMd5 = '5';

const checkCondition = 0x02;
const unitAttention = 0x06;
const illegalRequest = 0x05;

/** A new session is told of resets and changes before anything else, one at a time. */
const maxAttentions = 8;

class Session {
  readonly #socket: Socket;
  readonly #address: LunAddress;
  readonly #incoming: AsyncIterator<Buffer, undefined>;
  readonly #isid = Buffer.concat([Buffer.from([0x80]), randomBytes(5)]);
  #received: Buffer = Buffer.alloc(0);
  #commandNumber = 1;
  #statusNumber = 0;
  #task = 0;

  constructor(socket: Socket, address: LunAddress) {
    this.#socket = socket;
    this.#address = address;
    this.#incoming = socket[Symbol.asyncIterator]() as AsyncIterator<Buffer, undefined>;
  }

  async login(): Promise<void> {
    const { target, initiator, login } = this.#address;
    const names = { InitiatorName: initiator, TargetName: target, SessionType: 'Normal' };
    if (login === null) {
      await this.#negotiate(stage.security, stage.operational, { ...names, AuthMethod: 'None' });
    } else {
      await this.#negotiate(stage.security, null, { ...names, AuthMethod: 'CHAP,None' });
      const challenge = await this.#negotiate(stage.security, null, { CHAP_A: chapMd5 });
      const id = Number(challenge.get('CHAP_I') ?? NaN);
      if (challenge.get('CHAP_A') !== chapMd5 || Number.isNaN(id))
        throw new IscsiError('the target does not offer CHAP');
      const response = createHash('md5')
        .update(Buffer.from([id]))
        .update(login.password)
        .update(binaryValue(challenge.get('CHAP_C') ?? ''))
        .digest('hex');
      const proof = { CHAP_N: login.username, CHAP_R: `0x${response}` };
      await this.#negotiate(stage.security, stage.operational, proof);
    }
    await this.#negotiate(stage.operational, stage.fullFeature, {
      HeaderDigest: 'None',
      DataDigest: 'None',
      InitialR2T: 'Yes',
      ImmediateData: 'No',
      MaxRecvDataSegmentLength: '65536',
      MaxConnections: '1',
      ErrorRecoveryLevel: '0',
    });
  }

  /** One mode page, or null if the LUN has none such. */
  async modePage(page: number): Promise<Buffer | null> {
    const allocated = 0xff;
    const disableBlockDescriptors = 0x08;
    const modeSense6 = Buffer.from([0x1a, disableBlockDescriptors, page, 0, allocated, 0]);
    for (let attention = 0; attention <= maxAttentions; attention++) {
      const { status, data, senseKey } = await this.#command(modeSense6, allocated);
      if (status === 0) {
        const start = 4 + data.readUInt8(3);
        return (data.readUInt8(start) & 0x3f) === page ? data.subarray(start) : null;
      }
      if (senseKey === illegalRequest) return null;
      if (senseKey !== unitAttention)
        throw new IscsiError(`the LUN answers with status ${status}, sense key ${senseKey}`);
    }
    throw new IscsiError('the LUN does not cease to tell of changes');
  }

  logout(): void {
    this.#task += 1;
    this.#send(newPdu(opcode.logoutRequest, { flags: 0x80, immediate: true }));
  }

  /** One step of the login; a `next` stage is asked for again until the target agrees. */
  async #negotiate(current: number, next: number | null, keys: Record<string, string>): Promise<Map<string, string>> {
    let text: Buffer = encodeText(keys);
    for (;;) {
      const flags = (next === null ? 0 : transit | next) | (current << 2);
      const request = newPdu(opcode.loginRequest, { flags, immediate: true }, text);
      this.#isid.copy(request.header, 8);
      this.#send(request);
      const response = await this.#receive(opcode.loginResponse);
      const status = response.header.readUInt16BE(36);
      if (status !== 0) throw new IscsiError(loginProblem(status));
      if (next === null || (response.header.readUInt8(1) & transit) !== 0) return decodeText(response.data);
      text = Buffer.alloc(0);
    }
  }

  async #command(cdb: Buffer, expectedBytes: number): Promise<{ status: number; data: Buffer; senseKey: number }> {
    const finalReadSimple = 0x80 | 0x40 | 0x01;
    const request = newPdu(opcode.scsiCommand, { flags: finalReadSimple, immediate: false });
    encodeLun(this.#address.lun).copy(request.header, 8);
    request.header.writeUInt32BE(expectedBytes, 20);
    cdb.copy(request.header, 32);
    this.#task += 1;
    this.#send(request);
    this.#commandNumber += 1;
    let data: Buffer = Buffer.alloc(0);
    for (;;) {
      const answer = await this.#receive(opcode.dataIn, opcode.scsiResponse);
      const status = answer.header.readUInt8(3);
      if (opcodeOf(answer) === opcode.scsiResponse) {
        // Behind a length of two bytes; the key is in the third of the sense data (SPC-4, fixed format).
        const senseKey = status === checkCondition && answer.data.length > 4 ? answer.data.readUInt8(4) & 0x0f : 0;
        return { status, data, senseKey };
      }
      data = Buffer.concat([data, answer.data]);
      const hasStatus = 0x01;
      if ((answer.header.readUInt8(1) & hasStatus) !== 0) return { status, data, senseKey: 0 };
    }
  }

  #send(pdu: Pdu): void {
    pdu.header.writeUInt32BE(this.#task, 16);
    pdu.header.writeUInt32BE(this.#commandNumber, 24);
    pdu.header.writeUInt32BE(this.#statusNumber, 28);
    this.#socket.write(encode(pdu));
  }

  /** The next PDU of one of these kinds; others, such as pings, are nothing to wait for. */
  async #receive(...wanted: number[]): Promise<Pdu> {
    for (;;) {
      const decoded = decode(this.#received);
      if (decoded === null) {
        const { value, done } = await this.#incoming.next();
        if (done === true) throw new IscsiError('the target closed the connection');
        this.#received = Buffer.concat([this.#received, value]);
        continue;
      }
      this.#received = decoded.rest;
      const { pdu } = decoded;
      if (!wanted.includes(opcodeOf(pdu))) continue;
      const numbered = opcodeOf(pdu) !== opcode.dataIn || (pdu.header.readUInt8(1) & 0x01) !== 0;
      if (numbered) this.#statusNumber = (pdu.header.readUInt32BE(24) + 1) >>> 0;
      return pdu;
    }
  }
}

/** RFC 3720, 10.13.5. */
function loginProblem(status: number): string {
  switch (status) {
    case 0x0201:
      return 'the target does not accept the login';
    case 0x0202:
      return 'the target does not admit this initiator';
    case 0x0203:
      return 'there is no such target';
    default:
      return `the target refuses the login with status 0x${status.toString(16).padStart(4, '0')}`;
  }
}
