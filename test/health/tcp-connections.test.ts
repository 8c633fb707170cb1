import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { on, once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { connect, createServer, type AddressInfo, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  breakAllConnections,
  breakConnections,
  forgetUnsent,
  waitsForServer,
} from '../../src/health/tcp-connections.ts';
import { waitFor } from '../lab/wait.ts';

/** An `ss` that runs this. */
async function withSs(script: string, meanwhile: () => Promise<void>): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), 'virt-cdp-'));
  const path = process.env['PATH'];
  await writeFile(join(folder, 'ss'), `#!/bin/sh\n${script}\n`, { mode: 0o755 });
  process.env['PATH'] = `${folder}:${path}`;
  try {
    await meanwhile();
  } finally {
    process.env['PATH'] = path;
    await rm(folder, { recursive: true });
  }
}

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

  it('are all broken, wherever they lead, of the one process', async () => {
    const server = createServer((peer) => peer.on('error', () => peer.destroy())).listen(0, '127.0.0.1');
    await once(server, 'listening');
    const { port } = server.address() as AddressInfo;
    const mine = connect(port, '127.0.0.1');
    const client = `const s = require('net').connect(${port}, '127.0.0.1', () => console.log('connected')); s.on('error', ({ code }) => console.log(code))`;
    const other = spawn(process.execPath, ['-e', client], { stdio: ['ignore', 'pipe', 'inherit'] });
    try {
      const accepted = once(server, 'connection');
      const said = on(other.stdout.setEncoding('utf8'), 'data');
      await said.next();
      await accepted;
      await breakAllConnections(other.pid!);
      assert.deepEqual((await said.next()).value, ['ECONNABORTED\n']);
      assert.equal(mine.destroyed, false);
    } finally {
      other.kill('SIGKILL');
      mine.destroy();
      server.close();
    }
  });
});

describe('a server', () => {
  it('is waited for from a question to its answer, if that takes long', async () => {
    const asked: Socket[] = [];
    const server = createServer((peer) => peer.on('data', () => asked.push(peer))).listen(0, '127.0.0.1');
    await once(server, 'listening');
    const at = { host: '127.0.0.1', port: (server.address() as AddressInfo).port };
    const client = connect(at.port, at.host);
    await once(client, 'connect');
    const waits = (): Promise<boolean> => waitsForServer(process.pid, at, 0);
    /** Of the kernel's clock, by which it is told what came first. */
    const nextTick = (): Promise<void> => new Promise((passed) => setTimeout(passed, 20));
    try {
      for (const question of ['one', 'two']) {
        await nextTick();
        client.write(question);
        await waitFor('the question to be seen', waits, 5_000);
        assert.equal(await waitsForServer(process.pid, at, 60_000), false);
        assert.equal(await waitsForServer(process.ppid, at, 0), false);
        asked.pop()?.write('answer');
        await once(client, 'data');
        assert.equal(await waits(), false);
      }
    } finally {
      client.destroy();
      server.close();
    }
  });

  const at = { host: '192.0.2.2', port: 10809 };
  /** Of process 7, as `ss -HtnpiO` has it: for how many ms nothing was sent, received, acknowledged. */
  const line = (sent: number, received: number, acknowledged: number, pid = 7): string =>
    `0 0 192.0.2.1:4000${sent % 10} 192.0.2.2:10809 users:(("qemu",pid=${pid},fd=9)) cubic rto:201 lastsnd:${sent} lastrcv:${received} lastack:${acknowledged} pacing_rate 1Gbps`;

  const cases: [string, boolean, string[]][] = [
    ['is waited for after something was sent', true, [line(20_000, 20_400, 20_000)]],
    [
      'is waited for after something was sent with the last answer, acknowledged after it',
      true,
      [line(20_400, 20_400, 20_200)],
    ],
    ['is not waited for after its answer', false, [line(20_400, 20_300, 20_300)]],
    ['is not waited for if it acknowledges a keepalive', false, [line(90_000, 90_000, 15_000)]],
    ['is not waited for if it has acknowledged one a second after its answer', false, [line(20_400, 20_400, 19_400)]],
    ['is not waited for if it was heard lately', false, [line(100, 3_000, 100)]],
    [
      'may serve something else that waits, by another connection',
      false,
      [line(20_000, 20_400, 20_000), line(20_401, 20_300, 20_300)],
    ],
    [
      "is waited for whatever another process's connection does",
      true,
      [line(20_000, 20_400, 20_000), line(20_401, 20_300, 20_300, 8)],
    ],
  ];
  for (const [what, waits, lines] of cases)
    it(what, () =>
      withSs(`cat << 'END'\n${lines.join('\n')}\nEND`, async () =>
        assert.equal(await waitsForServer(7, at, 10_000), waits),
      ),
    );
});

describe('a connection that was closed before all was sent', () => {
  it('sends nothing more when that is forgotten; one that is in use goes on', async () => {
    const server = createServer({ pauseOnConnect: true }).listen(0, '127.0.0.1');
    await once(server, 'listening');
    const { port } = server.address() as AddressInfo;
    const connected = async (): Promise<[Socket, Socket]> => {
      const client = connect(port, '127.0.0.1');
      const [[peer]] = (await Promise.all([once(server, 'connection'), once(client, 'connect')])) as [
        [Socket],
        unknown,
      ];
      return [client, peer];
    };
    /** How much of what the kernel took arrives. */
    const arrives = async (meanwhile: () => Promise<void>): Promise<number> => {
      const [client, peer] = await connected();
      client.on('error', () => {});
      client.write(Buffer.alloc(20 << 20));
      client.destroy();
      await once(client, 'close');
      await meanwhile();
      let bytes = 0;
      peer.on('data', (data: Buffer) => (bytes += data.length)).on('error', () => {});
      peer.resume();
      await once(peer, 'close');
      return bytes;
    };
    const [inUse, peer] = await connected();
    try {
      const all = await arrives(() => Promise.resolve());
      const some = await arrives(() => forgetUnsent({ host: '127.0.0.1', port }));
      assert.ok(some < all, `${some} of ${all} bytes arrived`);
      inUse.end('in use');
      assert.equal(String(peer.read() ?? (await once(peer.resume(), 'data'))[0]), 'in use');
    } finally {
      inUse.destroy();
      peer.destroy();
      server.close();
    }
  });

  const closing = (port: number): string => `FIN-WAIT-1 0 4096 192.0.2.1:${port} 192.0.2.2:10809`;
  const server = { host: '192.0.2.2', port: 10809 };

  it('is told if the kernel can not be made to forget it', () =>
    withSs(`[ "$1" = -K ] || echo '${closing(40000)}'`, () =>
      assert.rejects(forgetUnsent(server), { code: 'old-connection' }),
    ));

  it('is not confused with one that another program closes meanwhile', () =>
    withSs(
      `if [ "$1" = -K ]; then touch "$0.asked"; elif [ -e "$0.asked" ]; then echo '${closing(40001)}'; exit; fi; echo '${closing(40000)}'`,
      () => forgetUnsent(server),
    ));
});
