import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { currentPairs, withStop } from '../../src/protection/at-stop.ts';
import { DomainMemory } from '../../src/protection/domain-memory.ts';
import { arriving, type DiskRecord, type DomainRecord } from '../../src/protection/record.ts';
import { parseImageUri } from '../../src/storage/image.ts';
import { diskSeen, graph, record } from './observations.ts';

const domain = (disk: DiskRecord, policy: DomainRecord['policy'] = 'available'): DomainRecord => ({
  version: 1,
  uuid: 'u',
  name: 'web1',
  policy,
  lastStart: null,
  disks: [disk],
  restoreOwed: null,
});

describe('the word of a domain that has left for another host', () => {
  /** What the source would say of vda, had this been heard since its last look. */
  function word(disk: DiskRecord, ...events: { event: string; data: Record<string, unknown> }[]): string[] {
    const memory = new DomainMemory();
    const seen = [diskSeen({ record: disk })];
    for (const event of events) memory.learn({ timeMs: 0, ...event }, seen, () => undefined);
    return currentPairs(domain(disk), memory.stopped(seen).pairs).map(({ dev }) => dev);
  }

  it('is that the copies of a pair are identical', () => {
    assert.deepEqual(word(record.both), ['vda']);
  });

  it('is nothing of a pair of which a copy failed, if only in the last flush', () => {
    const bad = { type: 'flush', error: 'Input/output error', 'node-name': 'cdp-vda-mirror', 'sector-num': 0 };
    assert.deepEqual(word(record.both, { event: 'QUORUM_REPORT_BAD', data: bad }), []);
  });

  it('is nothing of a disk that its record calls exposed', () => {
    assert.deepEqual(word(record.onlyPrimary), []);
  });
});

describe('a mirror that was being brought up to date when the domain stopped', () => {
  it('is sealed as it is then', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'virt-cdp-stop-'));
    const file = join(folder, 'mirror');
    await writeFile(file, '');
    const mirror = { ...record.onlyPrimary.mirror, image: parseImageUri(file), sealed: 'before the sync' };
    const exposed: DiskRecord = { ...record.onlyPrimary, mirror };
    const syncing = diskSeen({ record: exposed, graph: { ...graph.exposed, mirrorOpen: true } });
    const stop = { ...new DomainMemory().stopped([syncing]), stoppedAtMs: Date.now() };
    const sealAfter = async (watched: boolean): Promise<string | undefined> =>
      (await withStop(domain(exposed), { ...stop, watched }, 1_000)).disks[0]?.mirror.sealed;
    assert.match((await sealAfter(true)) ?? '', /^\d+ 0 /);
    assert.equal(await sealAfter(false), 'before the sync');
    await rm(folder, { recursive: true });
  });
});

describe('the record of a domain that is to arrive', () => {
  const at = '2026-01-02T00:00:00.000Z';

  it('calls its mirror stale, and nothing identical', () => {
    const [disk] = arriving(domain({ ...record.both, atStop: { clean: true, primary: 'x' } }), at).disks;
    assert.deepEqual([disk?.primary.current, disk?.mirror.current], [true, false]);
    assert.deepEqual([disk?.atStop, disk?.instance, disk?.track, disk?.exposedSince], [null, null, null, null]);
  });

  it('keeps a strict guest from running on the primary alone', () => {
    assert.equal(arriving(domain(record.both, 'strict'), at).disks[0]?.exposedSince, at);
  });
});
