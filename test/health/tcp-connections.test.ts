import assert from 'node:assert/strict';
import { once } from 'node:events';
import { connect, createServer, type AddressInfo, type Socket } from 'node:net';
import { breakConnections } from '../../src/health/tcp-connections.ts';

describe("a process's connections to a server", () => {
  for (const host of ['127.0.0.1', '::1'])
    it(`are broken by the kernel, on ${host}, if there are no others`, async () => {
      const server = createServer((peer) => peer.on('error', () => peer.destroy())).listen(0, host);
      await once(server, 'listening');
      const { port } = server.address() as AddressInfo;
      const clients: Socket[] = [];
      try {
        for (const client of [connect(port, host), connect(port, host)]) {
          clients.push(client);
          await once(client, 'connect');
        }
        assert.equal(await breakConnections(process.pid, { host, port }, 1), false);
        assert.deepEqual(
          clients.map(({ destroyed }) => destroyed),
          [false, false],
        );

        const ends = Promise.all(clients.map((client) => once(client, 'error')));
        assert.equal(await breakConnections(process.pid, { host, port }, 2), true);
        await ends;
        assert.equal(await breakConnections(process.pid, { host, port }, 1), false);
      } finally {
        for (const client of clients) client.destroy();
        server.close();
      }
    });
});
