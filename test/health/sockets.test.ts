import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { connect, createServer, type AddressInfo, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { openSockets, socketsTo } from '../../src/health/sockets.ts';

describe('the sockets of a process', function () {
  this.timeout(10_000);
  const closing: (() => unknown)[] = [];

  afterEach(() => {
    for (const close of closing.splice(0).reverse()) close();
  });

  async function listen(at: { host: string; port: number } | { path: string }): Promise<Server> {
    const server = createServer((accepted) => closing.push(() => accepted.destroy())).listen(at);
    await once(server, 'listening');
    closing.push(() => server.close());
    return server;
  }

  async function connected(at: { host: string; port: number } | { path: string }): Promise<Socket> {
    const socket = connect(at);
    closing.push(() => socket.destroy());
    await once(socket, 'connect');
    return socket;
  }

  const portOf = (server: Server): number => (server.address() as AddressInfo).port;

  /** What came to a list meanwhile. */
  async function added<T>(list: () => string[], meanwhile: () => Promise<T>): Promise<[string[], T]> {
    const before = list();
    const result = await meanwhile();
    return [list().filter((one) => !before.includes(one)), result];
  }

  for (const host of ['127.0.0.1', '::1'])
    it(`are told by the port that they lead to, from ${host}, whatever else is opened`, async () => {
      const server = await listen({ host, port: 0 });
      const other = await listen({ host, port: 0 });
      const to = (): string[] => socketsTo(process.pid, { port: portOf(server) });
      const [[socket, ...more], wanted] = await added(to, async () => {
        await connected({ host, port: portOf(other) });
        const one = await connected({ host, port: portOf(server) });
        await connected({ host, port: portOf(other) });
        return one;
      });
      assert.ok(socket !== undefined && more.length === 0, 'one leads there');
      assert.ok(openSockets(process.pid)?.includes(socket));

      wanted.destroy();
      await once(wanted, 'close');
      assert.ok(!to().includes(socket));
      const [[again]] = await added(to, () => connected({ host, port: portOf(server) }));
      assert.notEqual(again, socket, 'another connection is another socket');
    });

  it('are told by an IPv6 address that stands for one of IPv4', async () => {
    const server = await listen({ host: '127.0.0.1', port: 0 });
    const at = { host: '::ffff:127.0.0.1', port: portOf(server) };
    const [sockets] = await added(
      () => socketsTo(process.pid, { port: at.port }),
      () => connected(at),
    );
    assert.equal(sockets.length, 1);
  });

  it('lead nowhere once the server has closed them', async () => {
    const server = await listen({ host: '127.0.0.1', port: 0 });
    const accepted = once(server, 'connection') as Promise<[Socket]>;
    const socket = connect({ host: '127.0.0.1', port: portOf(server), allowHalfOpen: true });
    closing.push(() => socket.destroy());
    await once(socket, 'connect');
    const to = (): string[] => socketsTo(process.pid, { port: portOf(server) });
    assert.equal(to().length, 1);
    const ended = once(socket.resume(), 'end');
    (await accepted)[0].end();
    await ended;
    assert.deepEqual(to(), []);
  });

  it('are told by leading to a unix socket, not from one', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'virt-cdp sockets '));
    try {
      const path = join(folder, 'nbd.sock');
      const server = await listen({ path });
      const accepted = once(server, 'connection');
      const [sockets] = await added(
        () => socketsTo(process.pid, 'unix'),
        async () => {
          await connected({ path });
          await accepted;
        },
      );
      assert.equal(sockets.length, 1, "the accepted end has the server's path");
    } finally {
      await rm(folder, { recursive: true });
    }
  });

  it('are none that anybody could tell of a process that is gone', () => {
    assert.equal(openSockets(2 ** 22 + 1), null);
    assert.deepEqual(socketsTo(2 ** 22 + 1, 'unix'), []);
  });
});
