import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { createServer, type AddressInfo, type Server, type Socket } from 'node:net';
import { hasWriteCache, IscsiError, type LunAddress } from '../../src/iscsi/client.ts';
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
} from '../../src/iscsi/pdu.ts';
import type { Pdu } from '../../src/iscsi/pdu.ts';

const password = Buffer.from('sesame-open-42');
const challenge = Buffer.from('0102030405060708', 'hex');

interface FakeOptions {
  /** The caching mode page that it answers with; none: ILLEGAL REQUEST. */
  page?: Buffer;
  /** How often it tells of a change before it answers. */
  attentions?: number;
  /** In so small pieces does it send. */
  pieceBytes?: number;
  silent?: boolean;
}

/** A target that knows one user, and answers MODE SENSE alone. */
class FakeTarget {
  readonly #server: Server;
  readonly seen: Map<string, string>[] = [];

  private constructor(server: Server) {
    this.#server = server;
  }

  static async start(options: FakeOptions): Promise<FakeTarget> {
    const server = createServer();
    const fake = new FakeTarget(server);
    server.on('connection', (socket) => fake.#serve(socket, options));
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    return fake;
  }

  address(login: LunAddress['login'] = { username: 'cdp', password }): LunAddress {
    const { port } = this.#server.address() as AddressInfo;
    return { host: '127.0.0.1', port, target: 'iqn.2026-01.x:y', lun: 1, initiator: 'iqn.2026-01.x:i', login };
  }

  close(): void {
    this.#server.close();
  }

  #serve(socket: Socket, { page, attentions = 0, pieceBytes = 65536, silent = false }: FakeOptions): void {
    let received: Buffer = Buffer.alloc(0);
    let left = attentions;
    const send = (pdu: Pdu): void => {
      const bytes = encode(pdu);
      for (let at = 0; at < bytes.length; at += pieceBytes) socket.write(bytes.subarray(at, at + pieceBytes));
    };
    socket.on('error', () => undefined);
    socket.on('data', (bytes: Buffer) => {
      if (silent) return;
      received = Buffer.concat([received, bytes]);
      for (let next = decode(received); next !== null; next = decode(received)) {
        received = next.rest;
        if (opcodeOf(next.pdu) === opcode.loginRequest) send(this.#login(next.pdu));
        if (opcodeOf(next.pdu) !== opcode.scsiCommand) continue;
        assert.deepEqual(next.pdu.header.subarray(8, 16), encodeLun(1));
        if (left > 0) send(checkCondition(0x06));
        else if (page === undefined) send(checkCondition(0x05));
        else send(dataIn(Buffer.concat([Buffer.from([page.length + 3, 0, 0, 0]), page])));
        left -= 1;
      }
    });
  }

  #login(request: Pdu): Pdu {
    const keys = decodeText(request.data);
    this.seen.push(keys);
    const flags = request.header.readUInt8(1);
    const response = keys.get('CHAP_R');
    const expected = createHash('md5')
      .update(Buffer.from([7]))
      .update(password)
      .update(challenge)
      .digest('hex');
    const denied = response !== undefined && (response !== `0x${expected}` || keys.get('CHAP_N') !== 'cdp');
    const answer = keys.has('CHAP_A')
      ? { CHAP_A: '5', CHAP_I: '7', CHAP_C: `0x${challenge.toString('hex')}` }
      : { AuthMethod: keys.has('AuthMethod') ? 'CHAP' : '' };
    const pdu = newPdu(opcode.loginResponse, { flags, immediate: false }, encodeText(answer));
    pdu.header.writeUInt16BE(denied ? 0x0201 : 0, 36);
    return pdu;
  }
}

function checkCondition(senseKey: number): Pdu {
  const sense = Buffer.alloc(20);
  sense.writeUInt16BE(18, 0);
  sense.writeUInt8(0x70, 2);
  sense.writeUInt8(senseKey, 4);
  const pdu = newPdu(opcode.scsiResponse, { flags: 0x80, immediate: false }, sense);
  pdu.header.writeUInt8(0x02, 3);
  return pdu;
}

function dataIn(data: Buffer): Pdu {
  return newPdu(opcode.dataIn, { flags: 0x81, immediate: false }, data);
}

const cachingPage = (flags: number): Buffer => Buffer.concat([Buffer.from([0x08, 18, flags]), Buffer.alloc(17)]);

describe('hasWriteCache', () => {
  let target: FakeTarget;

  async function ask(options: FakeOptions, login?: LunAddress['login']): Promise<boolean | null> {
    target = await FakeTarget.start(options);
    return hasWriteCache(target.address(login), 2_000);
  }

  afterEach(() => target.close());

  it('is what the caching mode page says', async () => {
    assert.equal(await ask({ page: cachingPage(0x14) }), true);
    target.close();
    assert.equal(await ask({ page: cachingPage(0x10) }), false);
    target.close();
    assert.equal(await ask({}), null);
  });

  it('comes through in pieces, after the changes that a new session is told of', async () => {
    assert.equal(await ask({ page: cachingPage(0x04), attentions: 2, pieceBytes: 7 }), true);
  });

  it('proves the password without sending it', async () => {
    await ask({ page: cachingPage(0) });
    const sent = target.seen.flatMap((keys) => [...keys.values()]).join('\n');
    assert.ok(sent.includes('cdp') && !sent.includes(String(password)));
  });

  it('fails with a sentence when the login is refused, or nobody answers', async () => {
    const wrong = { username: 'cdp', password: Buffer.from('wrong') };
    await assert.rejects(ask({}, wrong), { message: 'the target does not accept the login' });
    target.close();
    await assert.rejects(async () => {
      target = await FakeTarget.start({ silent: true });
      return hasWriteCache(target.address(), 50);
    }, IscsiError);
  });
});

describe('the units of iSCSI', () => {
  it('carry binary values in hexadecimal or base64', () => {
    assert.deepEqual(binaryValue('0x0102'), Buffer.from([1, 2]));
    assert.deepEqual(binaryValue('0x102'), Buffer.from([1, 2]));
    assert.deepEqual(binaryValue('0bAQI='), Buffer.from([1, 2]));
  });

  it('are whole only with their padding', () => {
    const bytes = encode(newPdu(opcode.loginRequest, { flags: 0x87, immediate: true }, Buffer.from('abcde')));
    assert.equal(bytes.length, 48 + 8);
    assert.equal(decode(bytes.subarray(0, -1)), null);
    assert.equal(decode(bytes)?.pdu.data.toString(), 'abcde');
  });
});
