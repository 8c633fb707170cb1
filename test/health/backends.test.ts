import assert from 'node:assert/strict';
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Backends } from '../../src/health/backends.ts';
import { Prober } from '../../src/health/prober.ts';
import { imageName, kindOf, parseImageUri, type Image } from '../../src/storage/image.ts';
import { mountPointOf } from '../../src/storage/mounts.ts';
import { withoutSecrets } from '../storage/images.ts';
import { isListening } from '../lab/listening.ts';
import { waitFor } from '../lab/wait.ts';

const patienceMs = 20_000;

describe('a storage that refuses', () => {
  it('has answered, but for an iSCSI target: for that QEMU waits', async () => {
    const prober = new Prober(() => 5_000, withoutSecrets);
    assert.equal(await prober.ask(parseImageUri('nbd://127.0.0.1:1/x')), true);
    assert.equal(await prober.ask(parseImageUri('iscsi://127.0.0.1:1/iqn.2026-01.x:y/1')), false);
  });
});

describe('what copies lie on', function () {
  this.timeout(60_000);
  let folder: string;
  let server: ChildProcess;
  let served: Image;

  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), 'virt-cdp-backends-'));
    const socket = join(folder, 'nbd');
    server = spawn('nbdkit', ['-f', '-U', socket, 'memory', '1M'], { stdio: 'ignore' });
    while (!(await isListening({ path: socket }))) await sleep(10);
    served = parseImageUri(`nbd+unix:///?socket=${socket}`);
  });

  afterEach(async () => {
    const ended = once(server, 'exit');
    server.kill('SIGKILL');
    await ended;
    await rm(folder, { recursive: true });
  });

  const backend = (uri: string): string => {
    const { source } = parseImageUri(uri);
    return kindOf(source).backend(source);
  };

  it('is a server, a device or a file system', () => {
    assert.equal(backend('nbd://storage1/a'), backend('nbd://storage1:10809/b'));
    assert.notEqual(backend('nbd://storage1/a'), backend('nbd://storage2/a'));
    assert.equal(backend('/proc/self/a'), backend('file:///proc/b'));
    assert.notEqual(backend('/proc/a'), backend('/sys/a'));
    assert.notEqual(backend('/dev/vg/a'), backend('/dev/vg/b'));
    assert.equal(mountPointOf('/no/such/folder'), '/');
  });

  describe('asked by the prober', () => {
    const prober = new Prober(() => 1_000, withoutSecrets);

    it('answers', async () => assert.equal(await prober.ask(served), true));

    it('answers by refusing, too', async () => {
      assert.equal(await prober.ask(parseImageUri(`nbd+unix:///no?socket=${join(folder, 'none')}`)), true);
      assert.equal(await prober.ask(parseImageUri(join(folder, 'none'))), true);
    });

    it('answers for a file', async () => {
      await writeFile(join(folder, 'file'), 'x');
      assert.equal(await prober.ask(parseImageUri(join(folder, 'file'))), true);
    });

    it('does not answer while it hangs, and does when it goes on', async () => {
      server.kill('SIGSTOP');
      assert.equal(await prober.ask(served), false);
      server.kill('SIGCONT');
      assert.equal(await prober.ask(served), true);
    });
  });

  it('is told of when it falls silent, and when it answers again; before it has answered, nothing is said against it', async () => {
    const told: string[] = [];
    const backends = new Backends({
      prober: new Prober(() => 500, withoutSecrets),
      intervalMs: () => 100,
      suspected: (owner) => told.push(owner),
    });
    try {
      server.kill('SIGSTOP');
      backends.watch('web', [served]);
      await waitFor('the server to be found silent', () => Promise.resolve(told.length > 0), patienceMs);
      assert.deepEqual([backends.hasAnswered(served), backends.isSilent(served)], [false, false]);

      server.kill('SIGCONT');
      await waitFor('an answer', () => Promise.resolve(backends.hasAnswered(served)), patienceMs);
      const [answered] = backends.report();
      assert.equal(answered?.answers, true);
      assert.ok((answered.tookMs ?? 0) > 0);
      server.kill('SIGSTOP');
      await waitFor('the silence', () => Promise.resolve(backends.isSilent(served)), patienceMs);
      assert.equal(backends.report()[0]?.answers, false);
      server.kill('SIGCONT');
      await waitFor('an answer', () => Promise.resolve(!backends.isSilent(served)), patienceMs);
      assert.deepEqual([...new Set(told)], ['web']);

      backends.watch('web', []);
      assert.equal(backends.hasAnswered(served), false, imageName(served));
    } finally {
      server.kill('SIGCONT');
      backends.close();
    }
  });
});
