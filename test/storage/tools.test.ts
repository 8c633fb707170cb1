import assert from 'node:assert/strict';
import { execFileSync, spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { mkdir, mkdtemp, readFile, rm, stat, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { CdpError } from '../../src/errors.ts';
import { parseImageUri, sameStorage } from '../../src/storage/image.ts';
import { isListening } from '../lab/listening.ts';
import { withoutSecrets } from './images.ts';
import { createImage, measureImage, probeImage, resolveImage } from '../../src/storage/tools.ts';

const MiB = 1024 * 1024;
const soon = { deadlineMs: 8000, opener: withoutSecrets };

describe('tools on storage', () => {
  let folder: string;
  const servers: ChildProcess[] = [];

  before(async () => {
    folder = await mkdtemp(join(tmpdir(), 'virt-cdp-tools-'));
  });

  after(async () => {
    for (const server of servers.filter((each) => each.exitCode === null)) {
      const ended = once(server, 'exit');
      server.kill('SIGKILL');
      await ended;
    }
    await rm(folder, { recursive: true });
  });

  const at = (name: string): string => join(folder, name);

  async function serve(name: string, ...plugin: string[]): Promise<{ uri: string; server: ChildProcess }> {
    const socket = at(name);
    const server = spawn('nbdkit', ['-f', '-U', socket, ...plugin], { stdio: 'ignore' });
    servers.push(server);
    while (!(await isListening({ path: socket }))) await sleep(10);
    return { uri: `nbd+unix:///?socket=${socket}`, server };
  }

  describe('createImage', () => {
    for (const name of ['new.img', 'new, "odd":%20.qcow2']) {
      it(`makes ${name}, empty, sparse and private`, async () => {
        const image = parseImageUri(at(name));
        await createImage(image, 64 * MiB, soon);
        const measured = await measureImage(image, soon);
        const { format, ...expected } = {
          format: image.format,
          virtualSizeBytes: 64 * MiB,
          holdsData: false,
          backing: false,
          dataFile: false,
        };
        assert.deepEqual(measured, { ...expected, detectedFormat: format, direct: true });
        const { mode, blocks } = await stat(at(name));
        assert.equal(mode & 0o777, 0o600);
        assert.ok(blocks * 512 < MiB);
      });
    }

    it('never touches what is there', async () => {
      await writeFile(at('precious.img'), 'data');
      await assert.rejects(createImage(parseImageUri(at('precious.img')), MiB, soon), { code: 'image-exists' });
      assert.equal(await readFile(at('precious.img'), 'utf8'), 'data');
      await symlink(at('nowhere'), at('dangling.img'));
      await assert.rejects(createImage(parseImageUri(at('dangling.img')), MiB, soon), { code: 'image-exists' });
      await mkdir(at('folder.img'));
      await assert.rejects(createImage(parseImageUri(at('folder.img')), MiB, soon), { code: 'image-exists' });
    });

    it('leaves nothing behind when it fails', async () => {
      await assert.rejects(createImage(parseImageUri(at('huge.qcow2')), 2 ** 62, soon), CdpError);
      assert.equal(existsSync(at('huge.qcow2')), false);
    });

    it('says what can not be created', async () => {
      await assert.rejects(createImage(parseImageUri(at('no/such.img')), MiB, soon), { code: 'folder-missing' });
      await assert.rejects(createImage(parseImageUri('/dev/vg/x'), MiB, soon), { code: 'image-not-creatable' });
      await assert.rejects(createImage(parseImageUri('nbd://h/x'), MiB, soon), { code: 'image-not-creatable' });
    });
  });

  describe('measureImage', () => {
    it('finds data at the start, at the very end, and in qcow2', async () => {
      for (const [name, offset] of [
        ['start.img', 0],
        ['end.img', 64 * MiB - 512],
        ['far.qcow2', 40 * MiB],
      ] as const) {
        const image = parseImageUri(at(name));
        await createImage(image, 64 * MiB, soon);
        execFileSync('qemu-io', ['-f', image.format, '-c', `write -P 1 ${offset} 512`, at(name)], { stdio: 'ignore' });
        assert.equal((await measureImage(image, soon)).holdsData, true, name);
      }
    });

    it('reads allocated zeros as empty', async () => {
      await writeFile(at('zeros.img'), Buffer.alloc(3 * MiB));
      assert.equal((await measureImage(parseImageUri(at('zeros.img')), soon)).holdsData, false);
    });

    it('tells of a header that is not the declared format, of a backing file and of a data file', async () => {
      execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', at('inner'), '8M']);
      const measured = await measureImage(parseImageUri(at('inner')), soon);
      assert.equal(measured.detectedFormat, 'qcow2');
      assert.equal(measured.holdsData, true);
      execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', at('inner'), '-F', 'qcow2', at('overlay.qcow2')]);
      assert.equal((await measureImage(parseImageUri(at('overlay.qcow2')), soon)).backing, true);
      execFileSync('qemu-img', [
        'create',
        '-q',
        '-f',
        'qcow2',
        '-o',
        `data_file=${at('data')}`,
        at('split.qcow2'),
        '8M',
      ]);
      assert.equal((await measureImage(parseImageUri(at('split.qcow2')), soon)).backing, true);
    });

    it('measures a raw image whatever a guest wrote at its start', async () => {
      await writeFile(
        at('guest.img'),
        Buffer.concat([Buffer.from('QFI\xfb\0\0\0\x63', 'latin1'), Buffer.alloc(MiB - 8)]),
      );
      const measured = await measureImage(parseImageUri(at('guest.img')), soon);
      assert.deepEqual([measured.virtualSizeBytes, measured.holdsData, measured.detectedFormat], [MiB, true, null]);
    });

    it('says what is missing or wrong', async () => {
      await assert.rejects(measureImage(parseImageUri(at('none.img')), soon), {
        code: 'mirror-missing',
        hint: /--create/,
      });
      await assert.rejects(measureImage(parseImageUri('/dev/none'), soon), {
        code: 'image-unusable',
        message: /No such file/,
      });
      await assert.rejects(measureImage(parseImageUri('nbd://127.0.0.1:1/x'), soon), { message: /Connection refused/ });
      await writeFile(at('not.qcow2'), 'x'.repeat(4096));
      await assert.rejects(measureImage(parseImageUri(at('not.qcow2')), soon), {
        message: `'${at('not.qcow2')}' could not be measured: Image is not in qcow2 format`,
      });
    });

    it('reads NBD, with data and without', async () => {
      const empty = await serve('empty', 'memory', '64M');
      assert.deepEqual(await measureImage(parseImageUri(empty.uri), soon), {
        virtualSizeBytes: 64 * MiB,
        holdsData: false,
        detectedFormat: 'raw',
        backing: false,
        dataFile: false,
        direct: true,
      });
      const full = await serve('full', 'pattern', '1M');
      assert.equal((await measureImage(parseImageUri(full.uri), soon)).holdsData, true);
    });

    it('takes an emptiness that it had no time to see for data', async () => {
      const { uri } = await serve('slow', '--filter=delay', 'memory', '4G', 'delay-read=50ms', '--filter=noextents');
      const begun = Date.now();
      assert.equal((await measureImage(parseImageUri(uri), { ...soon, deadlineMs: 2000 })).holdsData, true);
      assert.ok(Date.now() - begun < 3500);
    });
  });

  describe('probeImage', () => {
    it('sees that a copy answers, while another process writes to it', async () => {
      const image = parseImageUri(at('busy.qcow2'));
      await createImage(image, MiB, soon);
      const writer = spawn('qemu-io', ['-f', 'qcow2', at('busy.qcow2')], { stdio: ['pipe', 'pipe', 'ignore'] });
      servers.push(writer);
      writer.stdin.write('write 0 4096\n');
      await once(writer.stdout, 'data');
      assert.deepEqual(await probeImage(image, soon), { ok: true });
    });

    it('says why a copy does not answer', async () => {
      const missing = await probeImage(parseImageUri(at('none.img')), soon);
      assert.ok(!missing.ok && /No such file/.test(missing.reason));
      const { uri } = await serve('broken', '--filter=error', 'memory', '64M', 'error-pread-rate=100%');
      assert.deepEqual(await probeImage(parseImageUri(uri), soon), {
        ok: false,
        reason: 'read failed: i/o error',
        late: false,
      });
    });

    it('gives up at the deadline on storage that hangs', async () => {
      const { uri, server } = await serve('hanging', 'memory', '64M');
      server.kill('SIGSTOP');
      const outcome = await probeImage(parseImageUri(uri), { ...soon, deadlineMs: 300 });
      assert.deepEqual(outcome, { ok: false, reason: 'it did not answer within 300 ms', late: true });
      await assert.rejects(measureImage(parseImageUri(uri), { ...soon, deadlineMs: 300 }), { code: 'storage-timeout' });
    });

    it('says that the tool is missing, if it is', async () => {
      const path = process.env['PATH'];
      process.env['PATH'] = folder;
      try {
        await assert.rejects(probeImage(parseImageUri(at('none.img')), soon), {
          code: 'tool-missing',
          hint: /qemu-utils/,
        });
      } finally {
        process.env['PATH'] = path;
      }
    });
  });

  it('resolveImage makes aliases of one file comparable, missing ones too', async () => {
    await mkdir(at('real'));
    await symlink(at('real'), at('alias'));
    for (const suffix of ['x.img', 'deeper/x.img']) {
      const [a, b] = await Promise.all(
        ['real', 'alias'].map((name) => resolveImage(parseImageUri(join(at(name), suffix)), soon)),
      );
      assert.ok(a && b && sameStorage(a, b));
    }
  });
});
