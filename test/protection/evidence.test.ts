import assert from 'node:assert/strict';
import { damageOf, type Damage } from '../../src/protection/planner/damage.ts';
import { damageReport, jobReport, stoppedDisk } from '../../src/protection/evidence.ts';
import type { QmpEvent } from '../../src/qmp/monitor.ts';
import {
  answering,
  diskSeen,
  failed,
  full,
  graph,
  job,
  primaryNodes,
  record,
  unknown,
  type DiskParts,
} from './observations.ts';

const event = (name: string, data: QmpEvent['data']): QmpEvent => ({ event: name, timeMs: 0, data });
const bad = (node: string, error?: string): QmpEvent =>
  event('QUORUM_REPORT_BAD', { type: 'write', 'node-name': node, ...(error !== undefined && { error }) });

describe('damageReport', () => {
  it('blames the copy whose node QEMU names', () => {
    assert.equal(damageReport(bad('cdp-vda-mirror', 'Input/output error'), diskSeen())?.side, 'mirror');
    assert.equal(damageReport(bad('libvirt-1-format', 'Input/output error'), diskSeen())?.side, 'primary');
    assert.equal(damageReport(bad('libvirt-1-storage', 'Input/output error'), diskSeen())?.side, 'primary');
  });

  it("blames nobody for a job's filter, another disk, another event", () => {
    assert.equal(damageReport(bad('#block123', 'Input/output error'), diskSeen()), null);
    assert.equal(damageReport(bad('cdp-vdb-mirror', 'Input/output error'), diskSeen()), null);
    assert.equal(damageReport(event('QUORUM_FAILURE', { reference: 'cdp-vda' }), diskSeen()), null);
  });

  it("blames nobody for the filter of a stranger's backup, also once it was seen over the primary", () => {
    const primary = { ...primaryNodes, top: '#block123', chain: ['#block123', ...primaryNodes.chain] };
    const underBackup = { graph: { ...graph.pair, primary, otherJob: job({ device: 'backup-vda', type: 'backup' }) } };
    assert.equal(damageReport(bad('#block123', 'No space left on device'), diskSeen(underBackup)), null);
    assert.equal(damageReport(bad('libvirt-1-format', 'Input/output error'), diskSeen(underBackup))?.side, 'primary');
  });

  it('says what failed, and whether the storage is full', () => {
    assert.deepEqual(damageReport(bad('cdp-vda-mirror', 'No space left on device'), diskSeen())?.health, {
      is: 'failed',
      why: 'write: No space left on device',
      noSpace: true,
    });
    assert.deepEqual(damageReport(bad('cdp-vda-mirror'), diskSeen())?.health, {
      is: 'failed',
      why: 'write: its data differ',
      noSpace: false,
    });
  });
});

describe('damageReport of a disk whose guest is told of errors', () => {
  const told = { graph: graph.mirrorJob, engine: 'mirror', withoutStopPolicy: 'it lacks the stop policy' } as const;
  const ioError = (data: QmpEvent['data'] = {}): QmpEvent =>
    event('BLOCK_IO_ERROR', { 'node-name': 'cdp-vda', operation: 'read', action: 'report', reason: 'EIO', ...data });

  it('blames the primary for what the guest was told', () => {
    assert.equal(damageReport(ioError(), diskSeen(told))?.side, 'primary');
  });

  it('blames nobody for want of space that the guest was told of', () => {
    assert.equal(damageReport(ioError({ nospace: true }), diskSeen(told)), null);
    assert.equal(damageReport(ioError({ nospace: true, action: 'stop' }), diskSeen(told))?.side, 'primary');
  });

  it('blames nobody as long as there is one copy; the copy that failed is begun anew, and later', () => {
    const copying = diskSeen({ ...told, record: record.onlyPrimary });
    const jobError = event('BLOCK_JOB_ERROR', { device: 'cdp-vda-pair', operation: 'write' });
    assert.equal(damageReport(ioError(), copying), null);
    assert.equal(damageReport(jobError, copying), null);
    assert.deepEqual(jobReport(jobError, copying), {
      ok: false,
      why: 'write error while the mirror was brought up to date',
      side: 'mirror',
    });
    assert.equal(jobReport(jobError, diskSeen(told)), null);
  });
});

describe('damageReport of a pair by a mirror job', () => {
  const pair = diskSeen({ graph: graph.mirrorJob, engine: 'mirror' });
  const ioError = (data: QmpEvent['data'] = {}): QmpEvent =>
    event('BLOCK_IO_ERROR', { 'node-name': 'cdp-vda', operation: 'write', reason: 'Input/output error', ...data });

  it('blames the mirror for an error of the job', () => {
    const report = damageReport(event('BLOCK_JOB_ERROR', { device: 'cdp-vda-pair', operation: 'write' }), pair);
    assert.equal(report?.side, 'mirror');
    assert.equal(damageReport(event('BLOCK_JOB_ERROR', { device: 'cdp-vdb-pair', operation: 'write' }), pair), null);
  });

  it('blames the primary for what the guest is shown, and says whether it is full', () => {
    const error = { is: 'failed', why: 'write: Input/output error', noSpace: false };
    assert.deepEqual(damageReport(ioError(), pair), { side: 'primary', health: error });
    assert.equal(damageReport(ioError({ nospace: true }), pair)?.health.noSpace, true);
    assert.equal(damageReport(ioError({ 'node-name': 'cdp-vdb' }), pair), null);
    assert.equal(damageReport(ioError(), diskSeen()), null);
  });
});

describe('jobReport', () => {
  const ended = (data: QmpEvent['data'], parts: DiskParts = { record: record.onlyPrimary }) =>
    jobReport(event('BLOCK_JOB_COMPLETED', { device: 'cdp-vda-sync', ...data }), diskSeen(parts));

  it('tells a good end from a bad one, and blames the target', () => {
    assert.deepEqual(ended({}), { ok: true });
    assert.deepEqual(ended({ error: 'Input/output error' }), {
      ok: false,
      why: 'the mirror could not be brought up to date: Input/output error',
      side: 'mirror',
    });
    const back = ended({ error: 'Input/output error' }, { record: record.onlyMirror });
    assert.equal(back?.ok === false && back.side, 'primary');
  });

  it('blames the target for a failed write, and nobody for a failed read', () => {
    const error = (operation: string) =>
      jobReport(
        event('BLOCK_JOB_ERROR', { device: 'cdp-vda-sync', operation }),
        diskSeen({ record: record.onlyPrimary }),
      );
    const [write, read] = [error('write'), error('read')];
    assert.equal(write?.ok === false && write.side, 'mirror');
    assert.equal(read?.ok === false && read.side, null);
  });

  it("does not look at others' jobs", () => {
    assert.equal(jobReport(event('BLOCK_JOB_COMPLETED', { device: 'cdp-vdb-sync' }), diskSeen()), null);
  });
});

describe('stoppedDisk', () => {
  const stopped = (node: string) => stoppedDisk(event('BLOCK_IO_ERROR', { 'node-name': node }), [diskSeen()]);

  it('finds the disk by any of its nodes', () => {
    assert.deepEqual(['cdp-vda', 'cdp-vda-park', 'libvirt-1-storage'].map(stopped), ['vda', 'vda', 'vda']);
    assert.equal(stopped('libvirt-9-format'), null);
  });
});

describe('damageOf', () => {
  const rows: [sentence: string, parts: DiskParts, damage: Damage][] = [
    ['nothing is known and nothing failed', {}, 'none'],
    ['an I/O failed and nobody knows where', { ioFailed: true }, 'unknown'],
    [
      'an I/O failed and one copy has not answered yet',
      { ioFailed: true, health: { primary: answering, mirror: unknown } },
      'unknown',
    ],
    [
      'both answer after an error: the mirror may have lost writes',
      { ioFailed: true, health: { primary: answering, mirror: answering } },
      'mirror',
    ],
    ['the mirror failed', { health: { primary: unknown, mirror: failed } }, 'mirror'],
    ['the primary failed, if only a read', { health: { primary: failed, mirror: unknown } }, 'primary'],
    ['both failed', { health: { primary: failed, mirror: failed } }, 'both'],
    ['the primary is full', { ioFailed: true, health: { primary: full, mirror: unknown } }, 'primary-full'],
    [
      'the primary was full: what it took meanwhile is unsure, so the mirror is brought up to date',
      { health: { primary: full, mirror: unknown } },
      'mirror',
    ],
  ];
  const out = { ...graph.mirrorJob, pair: { ...graph.mirrorJob.pair, inSync: false } };
  const byJob: typeof rows = [
    ['nothing is known and nothing failed', {}, 'none'],
    ['the guest is shown the errors of the primary alone', { ioFailed: true }, 'primary'],
    ['the primary is full', { ioFailed: true, noSpace: true }, 'primary-full'],
    ['both failed', { ioFailed: true, health: { primary: unknown, mirror: failed } }, 'both'],
    [
      'a mirror that has missed a write is no help against a primary that fails',
      { graph: out, ioFailed: true, health: { primary: failed, mirror: answering } },
      'mirror',
    ],
    ['the job has failed, and nobody heard of it', { graph: out }, 'mirror'],
  ];
  for (const [sentence, parts, damage] of byJob)
    it(`by a mirror job: ${sentence}: ${damage}`, () =>
      assert.equal(damageOf(diskSeen({ graph: graph.mirrorJob, engine: 'mirror', ...parts })), damage));

  for (const [sentence, parts, damage] of rows)
    it(`${sentence}: ${damage}`, () => assert.equal(damageOf({ ...diskSeen(parts), graph: graph.pair }), damage));
});
