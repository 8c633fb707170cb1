import assert from 'node:assert/strict';
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { durabilityProblem } from '../../src/storage/durability.ts';
import { parseImageUri } from '../../src/storage/image.ts';
import { isListening } from '../lab/listening.ts';
import { waitFor } from '../lab/wait.ts';
import { withoutSecrets } from './images.ts';

describe('durabilityProblem', function () {
  this.timeout(30_000);
  const servers: ChildProcess[] = [];
  let folder: string;

  before(async () => (folder = await mkdtemp(join(tmpdir(), 'virt-cdp-durability-'))));
  after(async () => {
    for (const server of servers) {
      const ended = once(server, 'exit');
      if (server.exitCode === null && server.kill('SIGKILL')) await ended;
    }
    await rm(folder, { recursive: true });
  });

  const problem = (uri: string): Promise<string | null> =>
    durabilityProblem(parseImageUri(uri), { deadlineMs: 10_000, opener: withoutSecrets });

  async function nbd(name: string, ...plugin: string[]): Promise<string> {
    const socket = join(folder, `${name}.sock`);
    servers.push(spawn('nbdkit', ['-f', '-U', socket, ...plugin], { stdio: 'ignore' }));
    await waitFor(`the NBD server ${name}`, () => isListening({ path: socket }), 10_000);
    return `nbd+unix:///?socket=${socket}`;
  }

  it('finds an NBD server that offers no flush', async () => {
    const pwrite = 'pwrite=cat >/dev/null';
    const without = await nbd('without', 'eval', 'get_size=echo 65536', 'pread=head -c $3 /dev/zero', pwrite);
    assert.match((await problem(without)) ?? '', /offers no flush/);
    assert.equal(await problem(await nbd('with', 'memory', '64k')), null);
  });

  it('says nothing of a server that is not there', async () => {
    assert.equal(await problem(`nbd+unix:///?socket=${join(folder, 'none')}`), null);
  });

  it('finds a file that lies in memory', async () => {
    assert.match((await problem('/dev/shm/mirror.raw')) ?? '', /lies in memory \(tmpfs\)/);
    assert.equal(await problem(join(import.meta.dirname, 'mirror.raw')), null);
  });
});
