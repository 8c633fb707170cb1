import assert from 'node:assert/strict';
import { mkdtemp, open, rename, rm, writeFile, type FileHandle } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { localFiles, lookAtOpenFiles } from '../../src/health/open-files.ts';
import { FileWatch } from '../../src/health/file-watch.ts';
import { waitFor } from '../lab/wait.ts';

const deadline = { deadlineMs: 10_000 };

describe('files that a process has open', function () {
  this.timeout(30_000);
  let folder: string;
  let path: string;
  let file: FileHandle;

  const look = async () => lookAtOpenFiles(process.pid, [path], deadline);
  const lost = async (): Promise<string | undefined> => (await look())?.lost[0]?.is;

  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), "virt-cdp open file's "));
    path = join(folder, 'disk.raw');
    file = await open(path, 'w+');
  });

  afterEach(async () => {
    await file.close();
    await rm(folder, { recursive: true });
  });

  it('are not lost as long as their paths lead to them', async () => assert.equal(await lost(), undefined));

  it('are lost when they are deleted, or moved, until they are moved back', async () => {
    await rename(path, `${path}.away`);
    assert.equal(await lost(), 'deleted');
    await rename(`${path}.away`, path);
    assert.equal(await lost(), undefined);
    await rm(path);
    assert.equal(await lost(), 'deleted');
  });

  it('are lost when another file takes their place', async () => {
    await writeFile(`${path}.new`, '');
    await rename(`${path}.new`, path);
    assert.equal(await lost(), 'replaced');
  });

  it('have a size, as long as they are not lost', async () => {
    await file.truncate(5000);
    assert.deepEqual((await look())?.sizes, new Map([[path, 5000]]));
    await rm(path);
    assert.deepEqual((await look())?.sizes, new Map());
  });

  it('are not judged for a process that is gone', async () =>
    assert.equal(await lookAtOpenFiles(2 ** 22 + 1, [path], deadline), null));

  it('are told local from others', async () => {
    assert.deepEqual(await localFiles([path, '/proc/self/status'], deadline), [path]);
  });

  it('are noticed to vanish, to be replaced, and for their owner alone', async () => {
    const told: string[] = [];
    const watch = new FileWatch((owner) => told.push(owner));
    const other = join(folder, 'other.raw');
    await writeFile(other, '');
    try {
      await watch.watch('web1', [path]);
      await watch.watch('web2', [other]);
      await writeFile(`${path}.new`, '');
      await waitFor(
        'the replaced file to be noticed',
        async () => {
          await writeFile(`${path}.new`, '');
          await rename(`${path}.new`, path);
          return told.length > 0;
        },
        10_000,
      );
      told.length = 0;
      await rm(path);
      await waitFor('the deleted file to be noticed', () => told.length > 0, 10_000);
      assert.ok(!told.includes('web2'));
    } finally {
      await watch.close();
    }
  });
});
