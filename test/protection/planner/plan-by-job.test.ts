import assert from 'node:assert/strict';
import { plan } from '../../../src/protection/planner/plan.ts';
import { canBeArmed, stateOf } from '../../../src/protection/status.ts';
import {
  answering,
  diskSeen,
  failed,
  graph,
  job,
  look,
  rebuildToNew,
  record,
  unknown,
  type DiskParts,
} from '../observations.ts';

type Situation = Parameters<typeof look>;

const planned = (...situation: Situation): string =>
  plan(look(...situation))
    .map(({ step }) => step)
    .join(' ');

/** Each row: what is seen, and the steps that follow. */
function table(rows: [sentence: string, disk: DiskParts, steps: string, domain?: Situation[1]][]): void {
  for (const [sentence, disk, steps, domain] of rows) it(sentence, () => assert.equal(planned(disk, domain), steps));
}

const withoutStopPolicy = 'it lacks the stop policy';
const copying = { bitmap: 'cdp-track-1', base: 'copying' } as const;
const told = { withoutStopPolicy, engine: 'mirror' } as const;

/** Before its first copy. */
const fresh: DiskParts = {
  ...told,
  record: { ...record.onlyPrimary, track: null, exposedSince: null },
  graph: graph.plain,
};
const openMirror = { ...graph.plain, mirrorOpen: true };
const begun: DiskParts = { ...told, record: { ...record.onlyPrimary, track: copying }, graph: openMirror };
/** Its mirror job copies everything. */
const pair = graph.mirrorJob;
const inCopy: DiskParts = {
  ...begun,
  graph: { ...pair, pair: { ...pair.pair, inSync: false, copying: true }, syncJob: job({ device: 'cdp-vda-pair' }) },
  health: { primary: unknown, mirror: answering },
};
const inSync: DiskParts = { ...begun, graph: pair };
const protectedDisk: DiskParts = { ...told, graph: pair };
const withIntent = (from: DiskParts, kind: 'hold' | 'failover' | 'remove'): DiskParts => ({
  ...from,
  record: { ...(from.record ?? record.both), intent: { kind } },
});
const toldOfError: DiskParts = { ...protectedDisk, health: { primary: failed, mirror: unknown } };

const leaves = 'track record dropPair closeMirror seal';
const leavesForPrimary = 'track record defineSource dropPair closeMirror seal';
const byJob = 'requireConnected requireInSync track record defineSource promote resume unmarkSurgery closePrimary seal';

describe('a disk whose guest is told of I/O errors', () => {
  describe('gets a pair without a park and without a job that could fail a write:', () => {
    table([
      ['its mirror is opened', fresh, 'openMirror'],
      ['that everything is copied is recorded before', { ...fresh, graph: openMirror }, 'record'],
      [
        'a bitmap of an outage is of no use',
        { ...fresh, graph: { ...graph.exposed, mirrorOpen: true } },
        'record untrack',
      ],
      ['the job begins in a pause', begun, 'markSurgery pause composeCopying addEpoch resume unmarkSurgery'],
      ['and goes on beside the guest', inCopy, ''],
      ['at the speed that it may have', { ...inCopy, pace: { bytesPerS: 1000, mostBytesPerS: 2000 } }, 'setSpeed'],
      [
        'which nothing that fails on the only copy keeps it from',
        { ...inCopy, health: { primary: failed, mirror: answering } },
        '',
      ],
      ['when it is in sync both copies are current, which is told', inSync, 'requireConnected record note note'],
      ['a mirror that failed is closed', { ...begun, health: { primary: unknown, mirror: failed } }, 'closeMirror'],
      [
        'nothing begins while the guest waits for us',
        begun,
        'resume unmarkSurgery',
        { run: 'surgery', surgeryMarked: true },
      ],
      ['nothing begins during a save', begun, '', { migrating: true }],
    ]);
  });

  describe('has its copy given up', () => {
    const giveUp = 'dropPair closeMirror';
    table([
      ['when it failed', { ...inCopy, graph: { ...pair, pair: { ...pair.pair, inSync: false } } }, giveUp],
      ['when its mirror fails otherwise', { ...inCopy, health: { primary: unknown, mirror: failed } }, giveUp],
      [
        'when nobody knows whether the guest stood still at its beginning',
        { ...inCopy, graph: { ...pair, pair: { ...pair.pair, epochs: [] } } },
        giveUp,
      ],
      ['when it is held', withIntent(inCopy, 'hold'), giveUp],
      ['when it is held before anybody recorded that it is whole', withIntent(inSync, 'hold'), giveUp],
      ['when its mirror fails before that', { ...inSync, health: { primary: unknown, mirror: failed } }, giveUp],
      ['for policy strict', inCopy, giveUp, { policy: 'strict' }],
      ['for a save or a migration', inCopy, giveUp, { migrating: true }],
    ]);
  });

  describe('that is protected', () => {
    table([
      ['stays so', protectedDisk, ''],
      [
        'leaves a mirror that failed without a pause',
        { ...protectedDisk, graph: { ...pair, pair: { ...pair.pair, inSync: false } } },
        leaves,
      ],
      ['is held without a pause', withIntent(protectedDisk, 'hold'), `requireAnswer ${leaves}`],
      ['leaves the pair for a save', protectedDisk, leaves, { migrating: true }],
      [
        'has a save cancelled that would have it left for a primary which is recorded as stale',
        { ...protectedDisk, record: record.onlyMirror },
        'cancelMigration',
        { migrating: true },
      ],
      ['or for one that failed', toldOfError, 'cancelMigration', { migrating: true }],
      ['or is to be left', withIntent(protectedDisk, 'failover'), 'cancelMigration', { migrating: true }],
      [
        'leaves the pair for a save with its primary current when its mirror has failed, whatever an agent that died was about to do',
        { ...protectedDisk, record: record.onlyMirror, graph: { ...pair, pair: { ...pair.pair, inSync: false } } },
        leavesForPrimary,
        { migrating: true },
      ],
      ['remembers that its primary failed before anything else', toldOfError, 'record'],
      [
        'is moved by the job itself, which has no moment in between',
        withIntent(toldOfError, 'failover'),
        `requireAnswer markSurgery pause ${byJob}`,
      ],
      ['is moved on request alike', withIntent(protectedDisk, 'failover'), `requireAnswer markSurgery pause ${byJob}`],
      [
        'is moved to the end when an agent died on the way',
        { ...protectedDisk, record: record.onlyMirror },
        `requireAnswer ${byJob}`,
        { run: 'surgery', surgeryMarked: true },
      ],
      [
        'keeps its guest on the primary when the mirror failed before that end',
        { ...protectedDisk, record: record.onlyMirror, graph: { ...pair, pair: { ...pair.pair, inSync: false } } },
        leavesForPrimary,
        { run: 'surgery', surgeryMarked: true },
      ],
      [
        'is not rebuilt before the next start',
        { ...told, record: { ...record.onlyMirror, intent: rebuildToNew }, graph: graph.mirror },
        '',
      ],
    ]);
  });

  describe('is shown', () => {
    const shown = (parts: DiskParts): string[] => {
      const { state, reason } = stateOf(look(parts), diskSeen(parts), null);
      return [state, reason ?? ''];
    };

    it('as protected with what it lacks, and never before the copy is whole', () => {
      assert.deepEqual(shown(protectedDisk), ['protected', withoutStopPolicy]);
      assert.equal(shown(inCopy)[0], 'syncing');
      assert.equal(shown(inSync)[0], 'syncing');
    });

    it('with the way to a rebuild when it is failed over', () => {
      const [state, reason] = shown({ ...told, record: record.onlyMirror, graph: graph.mirror });
      assert.equal(state, 'failed-over');
      assert.match(reason ?? '', /virsh shutdown web1, then virsh start web1/);
    });

    it('as waiting when its storage is full, also during the copy', () => {
      const full = { ioFailed: true, noSpace: true };
      for (const parts of [
        { ...protectedDisk, ...full },
        { ...inCopy, ...full },
      ]) {
        assert.equal(stateOf(look(parts, { run: 'io-error' }), diskSeen(parts), null).state, 'waiting');
        assert.equal(planned(parts, { run: 'io-error' }), '');
      }
    });

    it('as one that can be armed', () => assert.ok(canBeArmed(look(fresh), diskSeen(fresh))));
  });
});
