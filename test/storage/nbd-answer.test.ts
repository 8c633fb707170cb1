import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer, type AddressInfo, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { nbdAnswer, type NbdAnswer } from '../../src/storage/nbd-answer.ts';

const greeting = Buffer.from('4e42444d4147494349484156454f50540003', 'hex');
const sizeAndFlags = Buffer.from('00000000001000000001', 'hex');
const reply = (errno: number): Buffer => {
  const header = Buffer.alloc(16);
  header.writeUInt32BE(0x67446698, 0);
  header.writeUInt32BE(errno, 4);
  return Buffer.concat([header, ...(errno === 0 ? [Buffer.alloc(4096)] : [])]);
};

describe('what an NBD server answers', () => {
  let server: Server;
  let serve: (peer: Socket) => void;

  beforeEach(async () => {
    server = createServer((peer) => serve(peer.on('error', () => undefined)));
    await once(server.listen(0, '127.0.0.1'), 'listening');
  });

  afterEach(() => void server.close());

  const ask = (host: string): Promise<NbdAnswer> => {
    const { port } = server.address() as AddressInfo;
    const limit = { deadlineMs: 3_000, signal: AbortSignal.timeout(3_000) };
    return nbdAnswer({ kind: 'nbd', server: { host, port }, exportName: 'a' }, limit);
  };

  /** Answers all that is said at the beginning at once. */
  function answers(errno: number, then: (peer: Socket) => void): void {
    serve = (peer) => {
      peer.write(greeting);
      peer.once('data', () => peer.write(Buffer.concat([sizeAndFlags, reply(errno)]), () => then(peer)));
    };
  }

  it('is that it can be read', async () => {
    answers(0, (peer) => peer.resume().once('end', () => peer.end()));
    assert.deepEqual(await ask('127.0.0.1'), { ok: true });
  });

  it('is why it can not be read', async () => {
    answers(5, (peer) => peer.end());
    assert.deepEqual(await ask('127.0.0.1'), { ok: false, reason: 'read failed: i/o error' });
  });

  it('counts although the connection is broken off after it', async () => {
    answers(0, (peer) => peer.once('data', () => peer.resetAndDestroy()));
    assert.deepEqual(await ask('127.0.0.1'), { ok: true });
  });

  it('is not known of one that breaks off because it is not asked as it wants to be', async () => {
    serve = (peer) => void peer.once('data', () => peer.resetAndDestroy()).write(greeting);
    assert.equal(await ask('127.0.0.1'), null);
  });

  it('is not known of one that wants larger blocks', async () => {
    answers(22, (peer) => peer.end());
    assert.equal(await ask('127.0.0.1'), null);
  });

  it('is that of whichever of its addresses can be reached', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'virt-cdp-'));
    const path = process.env['PATH'];
    const addresses = '127.0.0.2 STREAM store\n127.0.0.2 DGRAM\n127.0.0.1 STREAM\n127.0.0.1 DGRAM';
    await writeFile(join(folder, 'getent'), `#!/bin/sh\necho '${addresses}'\n`, { mode: 0o755 });
    process.env['PATH'] = `${folder}:${path}`;
    try {
      answers(0, (peer) => peer.end());
      assert.deepEqual(await ask('store'), { ok: true });
      const { port } = server.address() as AddressInfo;
      server.close();
      const refused = nbdAnswer(
        { kind: 'nbd', server: { host: 'store', port }, exportName: 'a' },
        { deadlineMs: 3_000, signal: AbortSignal.timeout(3_000) },
      );
      assert.deepEqual(await refused, { ok: false, reason: `connect ECONNREFUSED 127.0.0.1:${port}` });
    } finally {
      process.env['PATH'] = path;
      await rm(folder, { recursive: true });
    }
  });

  it('is unknown while it is silent', async () => {
    serve = () => undefined;
    const { port } = server.address() as AddressInfo;
    const signal = AbortSignal.timeout(50);
    const source = { kind: 'nbd', server: { host: '127.0.0.1', port }, exportName: 'a' } as const;
    assert.deepEqual([await nbdAnswer(source, { deadlineMs: 50, signal }), signal.aborted], [null, true]);
  });
});
