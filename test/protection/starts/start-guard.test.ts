import assert from 'node:assert/strict';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseDomain } from '../../../src/domain/domain.ts';
import { createLog } from '../../../src/log.ts';
import type { DomainRecord } from '../../../src/protection/record.ts';
import { readNames, sameBy } from '../../../src/protection/starts/name-table.ts';
import { StartGuard } from '../../../src/protection/starts/start-guard.ts';
import { parseImageUri } from '../../../src/storage/image.ts';
import { domainWith } from '../../domain/fixtures.ts';
import { waitFor } from '../../lab/wait.ts';
import { look, record } from '../observations.ts';

describe('the guard of starts', () => {
  let folder: string;
  let records: DomainRecord[];
  let guard: StartGuard;

  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'start-guard-'));
    mkdirSync(join(folder, 'images'));
    writeFileSync(join(folder, 'images', 'p.img'), '');
    symlinkSync('images', join(folder, 'links'));
    symlinkSync('images/p.img', join(folder, 'other-name'));
    records = [];
    guard = new StartGuard({
      storePath: folder,
      log: createLog('error'),
      records: () => records,
      lookUpDeadlineMs: () => 10_000,
    });
  });
  afterEach(async () => {
    await guard.close();
    rmSync(folder, { recursive: true });
  });

  const on = (path: string): string =>
    domainWith(`<disk type='file'><source file='${path}'/><target dev='vda' bus='virtio'/></disk>`);

  function recorded(path: string): void {
    const disk = { ...record.onlyMirror, primary: { ...record.onlyMirror.primary, image: parseImageUri(path) } };
    records = [{ ...look({ record: disk }).record, uuid: '8a2f0b4e-0000-4000-8000-000000000001' }];
    guard.recordsChanged();
  }

  const refuses = (path: string): boolean => guard.answer('prepare', on(path)).refuse !== null;

  function list(): string[] {
    const path = join(folder, 'stale-sources');
    return existsSync(path) ? readFileSync(path, 'utf8').trimEnd().split('\n') : [];
  }

  it('knows where the copies of its records lead', async () => {
    recorded(join(folder, 'links', 'p.img'));
    await waitFor('the link to be followed', () => refuses(join(folder, 'images', 'p.img')), 10_000);
    await waitFor('both names to be listed', () => list().length === 2, 10_000);
    const same = sameBy(await readNames(folder));
    assert.ok(same(parseImageUri(join(folder, 'links/p.img')), parseImageUri(join(folder, 'images//p.img'))));
  });

  it('knows a link to a stale copy once a definition has named it', async () => {
    const stale = join(folder, 'images', 'p.img');
    const link = join(folder, 'other-name');
    recorded(stale);
    assert.ok(!refuses(link));
    guard.defined(parseDomain(on(link)));
    await waitFor('the link to be followed', () => refuses(link), 10_000);
    await waitFor('both names to be listed', () => list().includes(link) && list().includes(stale), 10_000);
  });

  it('forgets where a link led that was turned', async () => {
    const link = join(folder, 'other-name');
    recorded(join(folder, 'images', 'p.img'));
    guard.defined(parseDomain(on(link)));
    await waitFor('the link to be followed', () => refuses(link), 10_000);
    rmSync(link);
    symlinkSync('images/new.img', link);
    guard.defined(parseDomain(on(link)));
    await waitFor('the new way to be known', () => !refuses(link), 10_000);
  });
});
