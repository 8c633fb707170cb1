import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { chmod, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { createServer, type Server } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { CdpError } from '../../src/errors.ts';
import { handDescriptor, type Descriptor } from '../../src/storage/descriptors.ts';
import type { Source } from '../../src/storage/image.ts';

/** In place of virsh, a script that tells what it was handed; what QEMU makes of it, test/integration/unprivileged-qemu.test.ts shows. */
describe('handDescriptor', () => {
  let folder: string;
  const path = process.env['PATH'];
  const at = (name: string): string => join(folder, name);

  before(async () => {
    folder = await mkdtemp(join(tmpdir(), 'virt-cdp-descriptors-'));
    process.env['PATH'] = `${folder}:${path ?? ''}`;
  });

  after(async () => {
    process.env['PATH'] = path;
    await rm(folder, { recursive: true });
  });

  async function hand(source: Source, virsh: string, options = { readOnly: false }): Promise<Descriptor | null> {
    await writeFile(at('virsh'), `#!/bin/sh\necho "$@" >${at('said')}\n${virsh}\n`);
    await chmod(at('virsh'), 0o755);
    const to = { libvirtSocket: '/run/a b/libvirt-sock', domainId: 7 };
    return handDescriptor(source, to, { deadlineMs: 2000, ...options });
  }

  const yes = `echo '{"return":{}}'`;

  for (const [readOnly, access] of [
    [true, '0'],
    [false, '2'],
  ] as const) {
    it(`hands a file open ${readOnly ? 'for reading' : 'for writing'}, to the one QEMU`, async () => {
      await writeFile(at('image'), '');
      const look = `readlink /proc/self/fd/3 >${at('seen')}; grep flags /proc/self/fdinfo/3 >>${at('seen')}; ${yes}`;
      const descriptor = await hand({ kind: 'file', path: at('image') }, look, { readOnly });
      assert.ok(descriptor?.is === 'file' && descriptor.name === `/dev/fdset/${descriptor.fdsetId}`);
      assert.match(await readFile(at('seen'), 'utf8'), new RegExp(`^${at('image')}\nflags:\t\\d+${access}\n$`));
      assert.equal(
        await readFile(at('said'), 'utf8'),
        '--quiet --connect qemu+unix:///system?socket=%2Frun%2Fa%20b%2Flibvirt-sock qemu-monitor-command 7 --pass-fds 3 ' +
          `{"execute":"add-fd","arguments":{"fdset-id":${descriptor.fdsetId}}}\n`,
      );
    });
  }

  it('makes no file where there is none', async () => {
    await assert.rejects(hand({ kind: 'file', path: at('none') }, yes), isRefused(/No such file/));
    assert.ok(!existsSync(at('none')));
  });

  it('hands a socket connected, with what the server said first unread', async () => {
    const server = createServer((client) => client.end('NBDMAGIC'));
    await listen(server, at('socket'));
    try {
      const source: Source = { kind: 'nbd', server: { socket: at('socket') }, exportName: '' };
      const descriptor = await hand(source, `cat <&3 >${at('heard')}; ${yes}`);
      assert.equal(descriptor?.is, 'socket');
      assert.equal(await readFile(at('heard'), 'utf8'), 'NBDMAGIC');
    } finally {
      server.close();
    }
  });

  it('hands nothing of what is reached by the network', async () => {
    const source: Source = { kind: 'nbd', server: { host: 'far', port: 10809 }, exportName: '' };
    assert.equal(await hand(source, 'exit 1'), null);
  });

  it('says why QEMU or virsh would not take it, and that neither answered', async () => {
    await writeFile(at('image'), '');
    const source: Source = { kind: 'file', path: at('image') };
    await assert.rejects(
      hand(source, `echo '{"error":{"class":"GenericError","desc":"too many"}}'`),
      isRefused(/too many/),
    );
    await assert.rejects(hand(source, 'echo "error: no domain" >&2; exit 1'), isRefused(/no domain/));
    await assert.rejects(
      hand(source, 'sleep 3'),
      (error) => error instanceof CdpError && error.code === 'storage-timeout',
    );
    const nobody: Source = { kind: 'nbd', server: { socket: at('nobody') }, exportName: '' };
    await assert.rejects(hand(nobody, yes), isRefused(/ENOENT/));
  });
});

function isRefused(why: RegExp): (error: unknown) => boolean {
  return (error) => error instanceof CdpError && error.code === 'descriptor-refused' && why.test(error.message);
}

function listen(server: Server, path: string): Promise<void> {
  return new Promise((resolve) => server.listen(path, resolve));
}
