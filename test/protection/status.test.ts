import assert from 'node:assert/strict';
import { DiskMemory } from '../../src/protection/disk-memory.ts';
import type { DiskState } from '../../src/protection/model.ts';
import { canBeArmed, diskStatus, domainStatus, recordedStatus, stateOf, worst } from '../../src/protection/status.ts';
import { answering, diskSeen, failed, full, graph, job, look, mirrorImage, newImage, rebuildToNew, record, unknown, type DiskParts } from './observations.ts';

type Row = [sentence: string, disk: DiskParts, state: DiskState, domain?: Parameters<typeof look>[1]];

const exposed: DiskParts = { record: record.onlyPrimary, graph: graph.exposed };
const primaryGone = { path: '/primary/vda', deleted: true, why: 'it was deleted' };
const onMirror: DiskParts = { record: record.onlyMirror, graph: graph.mirror };

describe('stateOf', () => {
  const rows: Row[] = [
    ['a pair of which nothing bad is known', {}, 'protected'],
    ['a pair that is not recorded yet', { record: record.onlyPrimary }, 'syncing'],
    ['a pair whose mirror failed', { health: { primary: unknown, mirror: failed } }, 'exposed'],
    ['a pair whose primary failed', { health: { primary: failed, mirror: unknown } }, 'exposed'],
    ['a pair that failed on nobody knows which side', { ioFailed: true }, 'exposed', { run: 'io-error' }],
    ['a pair of which both copies failed', { health: { primary: failed, mirror: failed } }, 'broken'],
    ["a pair whose primary's file is gone and whose mirror failed", { ioFailed: true, primaryGone, health: { primary: unknown, mirror: failed } }, 'broken', { run: 'io-error' }],
    ['a pair with a full primary', { ioFailed: true, health: { primary: full, mirror: unknown } }, 'waiting', { run: 'io-error' }],
    ['the primary alone', exposed, 'exposed'],
    ['the primary alone, from the first day', { ...exposed, record: { ...record.onlyPrimary, exposedSince: null } }, 'waiting'],
    ['a sync that runs', { ...exposed, graph: { ...graph.exposed, mirrorOpen: true, syncJob: job({}) } }, 'syncing'],
    ['an open mirror that failed', { ...exposed, graph: { ...graph.exposed, mirrorOpen: true }, health: { primary: unknown, mirror: failed } }, 'exposed'],
    ['the primary alone, on request', { ...exposed, record: { ...record.onlyPrimary, intent: { kind: 'hold' } } }, 'held'],
    ['the only copy, full', { ...exposed, ioFailed: true, noSpace: true }, 'waiting', { run: 'io-error' }],
    ['the only copy failed', { ...exposed, ioFailed: true, health: { primary: failed, mirror: unknown } }, 'broken', { run: 'io-error' }],
    ['a start without the stop policy', { ...exposed, obstacle: 'it lacks the stop policy' }, 'waiting'],
    ["a stranger's block job", { ...exposed, graph: { ...graph.exposed, otherJob: job({ device: 'pull-vda' }) } }, 'waiting'],
    ['the mirror alone', onMirror, 'failed-over'],
    ['the mirror alone, failed', { ...onMirror, ioFailed: true }, 'broken', { run: 'io-error' }],
    ['the mirror alone, opened by libvirt', { ...onMirror, graph: graph.plain, liveImage: mirrorImage }, 'failed-over'],
    ['a rebuild', { record: { ...record.onlyMirror, intent: rebuildToNew }, graph: graph.layered }, 'rebuilding'],
    ['a start on the stale primary', { ...onMirror, graph: graph.plain }, 'broken'],
    ['a guest that waits, parked, with policy strict', { ...exposed, graph: { ...graph.exposed, layout: 'parked' } }, 'waiting', { run: 'io-error', policy: 'strict' }],
    ['a disk that is not in the domain', { graph: null }, 'waiting'],
    ['another image than the protected one', { record: { ...record.onlyPrimary, instance: 'boot/0' }, graph: graph.onOther, liveImage: newImage }, 'waiting'],
    ['a restored domain that libvirt keeps paused', { record: { ...record.onlyPrimary, instance: 'boot/0' }, graph: graph.plain }, 'waiting', { run: 'hands-off' }],
  ];
  for (const [sentence, parts, state, domain] of rows) {
    it(`${sentence}: ${state}`, () => {
      const seen = look(parts, domain);
      assert.equal(stateOf(seen, diskSeen(parts), null).state, state);
    });
  }

  it('says why', () => {
    const { reason } = stateOf(look(exposed), diskSeen(exposed), 'the mirror does not answer');
    assert.equal(reason, 'the mirror does not answer');
  });
});

describe('diskStatus', () => {
  const statusOf = (parts: DiskParts, memory = new DiskMemory()) => diskStatus(diskSeen(parts), memory);

  it('tells what the guest runs on', () => {
    assert.deepEqual(
      [{}, exposed, onMirror, { ...onMirror, graph: graph.plain, liveImage: mirrorImage }, { graph: graph.parked }, { graph: null }].map((parts) => statusOf(parts).runningOn),
      ['both', 'primary', 'mirror', 'mirror', 'none', 'none'],
    );
  });

  it('tells how much the stale copy lacks', () => {
    const tracking = [{ name: 'cdp-track-1', on: 'primary' as const, dirtyBytes: 131072 }];
    assert.equal(statusOf({ ...exposed, graph: { ...graph.exposed, tracking } }).exposedBytes, 131072);
    assert.equal(statusOf({ ...exposed, graph: graph.plain }).exposedBytes, null, 'nobody knows when the bitmap is gone');
    assert.equal(statusOf({}).exposedBytes, null);
  });

  it('tells what runs', () => {
    const running = (base: 'copying' | 'whole') =>
      statusOf({ record: { ...record.onlyPrimary, track: { bitmap: 'cdp-track-1', base } }, graph: { ...graph.exposed, syncJob: job({}) } }).job;
    assert.deepEqual(running('copying'), { kind: 'full-sync', done: 1, total: 2 });
    assert.deepEqual(running('whole'), { kind: 'delta-sync', done: 1, total: 2 });
    assert.equal(statusOf({ ...exposed, graph: { ...graph.exposed, otherJob: job({}) } }).job, null, "a stranger's job is not ours to show");
  });

  it('marks a stale copy that is a mixture of times', () => {
    assert.equal(statusOf(exposed).mirror.mixture, true);
    assert.equal('mixture' in statusOf({}).mirror, false);
  });

  it('remembers who answered', () => {
    const memory = new DiskMemory();
    memory.learn('mirror', failed);
    memory.learn('primary', answering);
    const { primary, mirror } = statusOf({}, memory);
    assert.deepEqual([primary.reachable, mirror.reachable], [true, false]);
  });
});

describe('domainStatus', () => {
  it('is as bad as its worst disk', () => {
    assert.equal(worst(['protected', 'exposed', 'syncing']), 'exposed');
    assert.equal(worst([]), 'stopped');
    const seen = look([{}, exposed]);
    const disks = seen.record.disks.map((disk) => recordedStatus(disk, new DiskMemory()));
    assert.equal(domainStatus(seen.record, true, disks, { engine: 'quorum', guarantee: 'strict-ack' }).state, 'exposed');
  });

  it('promises nothing for a disk that can not be armed as it runs', () => {
    const waiting = { ...exposed, graph: graph.plain, record: { ...record.onlyPrimary, exposedSince: null } };
    for (const [parts, expected] of [
      [{}, true],
      [exposed, true],
      [onMirror, true],
      [waiting, true],
      [{ ...waiting, obstacle: 'it lacks the stop policy' }, false],
      [{ ...waiting, graph: null }, false],
      [{ ...waiting, record: { ...waiting.record, instance: 'boot/0' } }, true],
      [{ ...waiting, record: { ...waiting.record, instance: 'boot/0' }, graph: graph.onOther, liveImage: newImage }, false],
    ] satisfies [DiskParts, boolean][]) {
      assert.equal(canBeArmed(look(parts), diskSeen(parts)), expected, JSON.stringify(parts));
    }
  });
});
