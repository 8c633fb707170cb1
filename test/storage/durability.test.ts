import assert from 'node:assert/strict';
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { durabilityDoubt, type Doubt } from '../../src/storage/durability.ts';
import { parseImageUri } from '../../src/storage/image.ts';
import { ImageOpener } from '../../src/storage/opener.ts';
import { makeCertificates } from '../lab/certificates.ts';
import { freePort, isListening } from '../lab/listening.ts';
import { waitFor } from '../lab/wait.ts';

describe('durabilityDoubt', function () {
  this.timeout(30_000);
  const servers: ChildProcess[] = [];
  const opener = new ImageOpener({
    readSecret: () => Promise.reject(new Error('no secret was to be read')),
    timeoutMs: () => 5_000,
    folder: tmpdir(),
    certificates: () => Promise.resolve(folder),
  });
  let folder: string;

  before(async () => (folder = await mkdtemp(join(tmpdir(), 'virt-cdp-durability-'))));
  after(async () => {
    for (const server of servers) {
      const ended = once(server, 'exit');
      if (server.exitCode === null && server.kill()) await ended;
    }
    await rm(folder, { recursive: true });
  });

  const doubt = (uri: string): Promise<Doubt | null> =>
    durabilityDoubt(parseImageUri(uri), { deadlineMs: 10_000, opener });

  async function nbd(name: string, ...plugin: string[]): Promise<string> {
    const socket = join(folder, `${name}.sock`);
    await serve({ path: socket }, '-U', socket, ...plugin);
    return `nbd+unix:///?socket=${socket}`;
  }

  /** By TLS alone, to clients with a certificate. */
  async function nbds(...plugin: string[]): Promise<string> {
    const port = await freePort();
    const tls = ['--tls=require', `--tls-certificates=${folder}`, '--tls-verify-peer'];
    await serve({ host: '127.0.0.1', port }, '-i', '127.0.0.1', '-p', String(port), ...tls, ...plugin);
    return `nbds://127.0.0.1:${port}/`;
  }

  async function serve(at: Parameters<typeof isListening>[0], ...args: string[]): Promise<void> {
    servers.push(spawn('nbdkit', ['-f', ...args], { stdio: 'ignore' }));
    await waitFor('the NBD server', () => isListening(at), 10_000);
  }

  async function withoutTools(act: () => Promise<void>): Promise<void> {
    const path = process.env['PATH'];
    process.env['PATH'] = folder;
    try {
      await act();
    } finally {
      process.env['PATH'] = path;
    }
  }

  const flushless = ['eval', 'get_size=echo 65536', 'pread=head -c $3 /dev/zero', 'pwrite=cat >/dev/null'];

  const offersNone = { known: true, what: /offers no flush/ };

  function assertDoubt(found: Doubt | null, { known, what }: { known: boolean; what: RegExp }): void {
    assert.match(found?.what ?? '', what);
    assert.equal(found?.known, known);
  }

  it('finds an NBD server that offers no flush, with no other tool', async () => {
    const [without, others] = [await nbd('without', ...flushless), await nbd('with', 'memory', '64k')];
    await withoutTools(async () => {
      assertDoubt(await doubt(without), offersNone);
      assert.equal(await doubt(others), null);
    });
  });

  it('finds one by TLS with nbdinfo, and says that it is needed', async () => {
    await makeCertificates(folder);
    const [without, others] = [await nbds(...flushless), await nbds('memory', '64k')];
    assertDoubt(await doubt(without), offersNone);
    assert.equal(await doubt(others), null);
    await withoutTools(async () =>
      assertDoubt(await doubt(without), { known: false, what: /nbdinfo, which is not installed \(libnbd-bin/ }),
    );
  });

  it('does not know of a server that is not there, or does not speak NBD', async () => {
    const notThere = { known: false, what: /could not be found out: connect ENOENT/ };
    assertDoubt(await doubt(`nbd+unix:///?socket=${join(folder, 'none')}`), notThere);
    const socket = join(folder, 'other.sock');
    const other = createServer((peer) => peer.end('x'.repeat(200)));
    await once(other.listen(socket), 'listening');
    const silent = { known: false, what: /could not be found out: it did not say/ };
    assertDoubt(await doubt(`nbd+unix:///?socket=${socket}`), silent);
    other.close();
  });

  it('does not know of a LUN whose target is not there', async () => {
    const lun = `iscsi://127.0.0.1:${await freePort()}/iqn.2026-01.org.example:web1/1`;
    assertDoubt(await doubt(lun), { known: false, what: /has a write cache could not be read: .*ECONNREFUSED/ });
  });

  it('finds a file that lies in memory', async () => {
    assertDoubt(await doubt('/dev/shm/mirror.raw'), { known: true, what: /lies in memory \(tmpfs\)/ });
    assert.equal(await doubt(join(import.meta.dirname, 'mirror.raw')), null);
  });
});
