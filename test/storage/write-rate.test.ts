import assert from 'node:assert/strict';
import { mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { requireSpaceIn } from '../../src/storage/free-space.ts';
import { measureWriteRate } from '../../src/storage/write-rate.ts';

const soon = { deadlineMs: 20_000 };

describe('what a folder can take', () => {
  let folder: string;
  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), 'virt-cdp-folder-'));
  });
  afterEach(() => rm(folder, { recursive: true }));

  it('is measured in bytes per second, and leaves nothing behind', async () => {
    assert.ok((await measureWriteRate(folder, soon)) > 0);
    assert.deepEqual(await readdir(folder), []);
  });

  it('is no more than a sample by the deadline, where that passes', async () => {
    const rate = await measureWriteRate(folder, { deadlineMs: 1 });
    assert.ok(rate > 0 && Number.isFinite(rate));
  });

  it('is nothing where there is no such folder', async () => {
    await assert.rejects(measureWriteRate(join(folder, 'none'), soon), { code: 'folder-not-writable' });
  });

  it('is refused with the figures where it is not enough', async () => {
    const about = { what: 'the memory', hint: 'make room', ...soon };
    await requireSpaceIn(folder, 1, about);
    await assert.rejects(requireSpaceIn(folder, 2 ** 60, about), {
      code: 'space-short',
      message: /^the memory needs \d+ bytes; '.*' has \d+ free, of which \d+ must stay free$/,
      hint: 'make room',
    });
  });
});
