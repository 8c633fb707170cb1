import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { execute, type Workbench } from '../../src/protection/execute.ts';
import type { DiskRecord, DomainRecord } from '../../src/protection/record.ts';
import { parseImageUri } from '../../src/storage/image.ts';
import { look, record } from './observations.ts';

describe('a copy that is sealed', () => {
  let folder: string;

  beforeEach(async () => (folder = await mkdtemp(join(tmpdir(), 'virt-cdp-execute-'))));

  afterEach(() => rm(folder, { recursive: true }));

  it('stays so when the same plan records another disk', async () => {
    const image = parseImageUri(join(folder, 'mirror'));
    await writeFile(join(folder, 'mirror'), '');
    const closed: DiskRecord = { ...record.onlyPrimary, mirror: { ...record.onlyPrimary.mirror, image } };
    const planned: DomainRecord = look([{ record: closed }, { record: { ...record.both, dev: 'vdb' } }]).record;
    let latest = planned;
    const bench = {
      record: () => latest,
      saveRecord: (saved: DomainRecord) => {
        latest = saved;
        return Promise.resolve();
      },
    } as Partial<Workbench> as Workbench;
    await execute({ step: 'seal', dev: 'vda', side: 'mirror', image }, bench);
    const seal = latest.disks[0]?.mirror.sealed;
    assert.notEqual(seal, undefined);
    await execute({ step: 'record', record: planned }, bench);
    assert.equal(latest.disks[0]?.mirror.sealed, seal);
  });
});
