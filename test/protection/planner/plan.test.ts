import assert from 'node:assert/strict';
import { plan } from '../../../src/protection/planner/plan.ts';
import type { Step, StepArguments, StepName } from '../../../src/protection/steps.ts';
import type { DiskGraph } from '../../../src/graph/view.ts';
import type { DiskRecord, DomainRecord } from '../../../src/protection/record.ts';
import { parseImageUri } from '../../../src/storage/image.ts';
import {
  answering,
  failed,
  full,
  graph,
  job,
  look,
  mirrorImage,
  newImage,
  primaryImage,
  primaryNodes,
  rebuildToNew,
  rebuildToOriginal,
  record,
  unknown,
  type DiskParts,
} from '../observations.ts';

type Situation = Parameters<typeof look>;

const planned = (...situation: Situation): string => plan(look(...situation)).map(({ step }) => step).join(' ');

function argumentsOf<Name extends StepName>(name: Name, ...situation: Situation): StepArguments[Name] {
  const step: Step | undefined = plan(look(...situation)).find((one) => one.step === name);
  assert.ok(step !== undefined, `${name} is planned`);
  return step as unknown as StepArguments[Name];
}

function recorded(...situation: Situation): DomainRecord['disks'][number] {
  const [disk] = argumentsOf('record', ...situation).record.disks;
  assert.ok(disk !== undefined);
  return disk;
}

/** Each row: what is seen, and the steps that follow. */
function table(rows: [sentence: string, disk: DiskParts | DiskParts[], steps: string, domain?: Situation[1]][]): void {
  for (const [sentence, disk, steps, domain] of rows) it(sentence, () => assert.equal(planned(disk, domain), steps));
}

const exposed: DiskParts = { record: record.onlyPrimary, graph: graph.exposed };
const syncing: DiskParts = { record: record.onlyPrimary, graph: { ...graph.exposed, mirrorOpen: true }, health: { primary: unknown, mirror: answering } };
const onLun = { ...record.onlyMirror, mirror: { ...record.onlyMirror.mirror, image: parseImageUri('iscsi://10.0.0.9/iqn.2026-01.org.example:web1/1') } };
const onMirror: DiskParts = { record: record.onlyMirror, graph: graph.mirror };
const pass = (on: 'primary' | 'mirror', dirtyBytes: number) => [
  { name: 'cdp-track-1', on, dirtyBytes },
  { name: 'cdp-track-1-pass', on, dirtyBytes },
];
const nearlyDone: DiskParts = { ...syncing, graph: { ...graph.exposed, mirrorOpen: true, tracking: pass('primary', 65536) } };
const withIntent = (from: DiskParts, intent: DomainRecord['disks'][number]['intent']): DiskParts => ({ ...from, record: { ...(from.record ?? record.both), intent } });

const paused = 'markSurgery pause park';
const resumed = 'unpark resume unmarkSurgery removePark';
const told = 'note note';
const armed = 'untrack untrack';
const ioError = { run: 'io-error' } as const;

describe('plan', () => {
  describe('while something in use does not answer', () => {
    const since = '2026-01-02T00:00:00.000Z';
    const ofPair: DiskParts = withIntent({}, { kind: 'hold' });
    it('begins nothing that would wait for it', () => {
      for (const disk of [nearlyDone, ofPair, withIntent(onMirror, rebuildToNew)]) {
        assert.notEqual(planned(disk), '');
        for (const side of ['primary', 'mirror', 'both', null] as const)
          assert.equal(planned({ ...disk, hang: { side, since } }), '');
        for (const silent of [['primary'], ['mirror'], ['primary', 'mirror']] as const)
          assert.equal(planned({ ...disk, silent: [...silent] }), '');
      }
    });

    it('begins nothing for another disk of the domain: the pause is for all', () => {
      assert.equal(planned([nearlyDone, { silent: ['mirror'] }]), '');
      assert.equal(planned([nearlyDone, { hang: { side: 'mirror', since } }]), '');
    });

    table([
      ['leaves a copy that failed, since a guest that is paused has no request that does not end', { ioFailed: true, health: { primary: unknown, mirror: failed }, silent: ['mirror'] }, `buildPark markSurgery park track dropPair record ${resumed} closeMirror seal`, ioError],
    ]);
  });

  describe('the safe order of durable writes', () => {
    table([
      ['to arm: flush, pause, park, last delta, flush, compose, record, unpark, resume', nearlyDone, `buildPark flush ${paused} finishDelta flush compose addEpoch record ${told} ${resumed} ${armed}`],
      ['to degrade: park, bitmap, drop, record, unpark, resume; the mirror is closed when the guest runs', { ioFailed: true, health: { primary: unknown, mirror: failed } }, `buildPark markSurgery park track dropPair record ${resumed} closeMirror seal`, ioError],
      ['to fail over: park, bitmap, drop, record, XML, unpark, resume; the primary is closed when the guest runs', { ioFailed: true, health: { primary: failed, mirror: unknown } }, `buildPark markSurgery park track dropPair record defineSource ${resumed} closePrimary seal`, ioError],
      ['to move back onto a new primary: the pivot is made on the park, and the next look goes on', { ...withIntent(onMirror, rebuildToNew), graph: { ...graph.layered, otherJob: job({ ready: true }) } }, `buildPark ${paused} pivot`],
      ['to adopt a new primary: compose, record, XML, unpark, resume', { ...withIntent(onMirror, rebuildToNew), graph: graph.parked, liveImage: newImage }, `park compose addEpoch record ${told} defineSource ${resumed}`, { run: 'surgery', surgeryMarked: true }],
    ]);

    it('records what is current before the guest goes on with one copy', () => {
      const degraded = recorded({ ioFailed: true, health: { primary: unknown, mirror: failed } }, ioError);
      assert.deepEqual([degraded.primary.current, degraded.mirror.current, degraded.track?.base], [true, false, 'whole']);
      assert.equal(degraded.mirror.consistentAsOf, '2026-01-02T00:00:00.000Z');
      const failedOver = recorded({ ioFailed: true, health: { primary: failed, mirror: unknown } }, ioError);
      assert.deepEqual([failedOver.primary.current, failedOver.mirror.current], [false, true]);
      assert.deepEqual(failedOver.layerNames, primaryNodes.chain);
      assert.equal(failedOver.intent.kind, 'protect');
    });

    it('begins the bitmap with all that the epochs had recorded', () => {
      const merged = [{ node: 'cdp-vda', name: 'cdp-epoch-1' }];
      assert.deepEqual(argumentsOf('track', { health: { primary: unknown, mirror: failed } }).merged, merged);
      assert.deepEqual(argumentsOf('track', { ioFailed: true, health: { primary: failed, mirror: unknown } }, ioError).merged, merged);
    });

    it('keeps what a broken-off surgery had taken from the epochs', () => {
      const brokenOff = { graph: { ...graph.parked, tracking: [{ name: 'cdp-track-7', on: 'primary' as const, dirtyBytes: 65536 }] } };
      const { bitmap, merged } = argumentsOf('track', brokenOff, { run: 'surgery', surgeryMarked: true });
      assert.deepEqual(merged, [{ node: 'libvirt-1-format', name: 'cdp-track-7' }]);
      assert.notEqual(bitmap, 'cdp-track-7');
    });
  });

  describe('a disk that is not protected yet', () => {
    const fresh = { ...record.onlyPrimary, track: null, exposedSince: null };
    table([
      ['opens its mirror', { record: fresh, graph: graph.plain }, 'openMirror'],
      ['records that a full sync spoils the mirror before it begins', { record: fresh, graph: { ...graph.plain, mirrorOpen: true }, health: { primary: unknown, mirror: answering } }, 'record track startFullSync'],
      ['waits for a full sync', { ...syncing, graph: { ...graph.exposed, mirrorOpen: true, syncJob: job({}) } }, ''],
      ['ends a full sync that is ready, and records it', { ...syncing, graph: { ...graph.exposed, mirrorOpen: true, syncJob: job({ ready: true }) } }, 'endFullSync requireConnected record'],
      ['begins the full sync again if a crash broke it off', { ...syncing, record: { ...record.onlyPrimary, track: { bitmap: 'cdp-track-1', base: 'copying' } } }, 'untrack record track startFullSync'],
      ['waits for the next start without the stop policy', { record: fresh, graph: graph.plain, obstacle: 'it lacks the stop policy' }, ''],
      ["waits for a stranger's block job", { record: fresh, graph: { ...graph.plain, otherJob: job({ device: 'pull-vda' }) } }, ''],
      ['waits out the back-off', { record: fresh, graph: graph.plain, mayRetry: false }, ''],
    ]);
  });

  describe('a park that no surgery needs, whose flushes would make every save and migration fail,', () => {
    const withPark = (disk: DiskParts): DiskParts => ({ ...disk, graph: { ...(disk.graph ?? graph.pair), parkReady: true } });
    table([
      ['goes', withPark({}), 'removePark'],
      ['goes before anything else that can wait', withPark(exposed), 'removePark'],
      ['goes before a domain is forgotten', withPark({ ...exposed, ...withIntent(exposed, { kind: 'remove' }) }), 'removePark'],
      ['serves a surgery that is due', withPark(nearlyDone), `flush ${paused} finishDelta flush compose addEpoch record ${told} ${resumed} ${armed}`],
      ['stays until a guest that waits for us goes on', withPark({}), 'resume unmarkSurgery', { run: 'surgery', surgeryMarked: true }],
      ['stays while others have the domain', withPark({}), '', { run: 'hands-off' }],
    ]);
  });

  describe('a primary whose file is gone', () => {
    const gone: DiskParts = { primaryGone: { path: '/primary/vda', deleted: false, why: 'it was replaced' }, record: { ...record.both, intent: { kind: 'failover' } } };
    const deleted = { path: '/primary/vda', deleted: true, why: 'it was deleted' };
    table([
      ['is to be left, and that is recorded', { primaryGone: deleted }, 'record'],
      ['that was deleted has a stand-in while it is left', { ...gone, primaryGone: deleted }, `requireAnswer buildPark standIn ${paused} track dropPair record defineSource ${resumed} removeStandIn closePrimary seal`],
      ['is not composed again after a crash', { ...gone, primaryGone: null, graph: graph.parkedPair }, `requireAnswer park track dropPair record defineSource ${resumed} closePrimary seal`, { run: 'surgery', surgeryMarked: true }],
      ['is left for the mirror, if that answers', gone, `requireAnswer buildPark ${paused} track dropPair record defineSource ${resumed} closePrimary seal`],
      ['is kept, and its mirror asked, when that fails', { ...gone, health: { primary: unknown, mirror: failed } }, 'probe'],
      ['keeps its guest waiting for a mirror that fails: what is written to it is lost when QEMU ends', { ...gone, ioFailed: true, mayRetry: false, health: { primary: unknown, mirror: failed } }, '', ioError],
      ['is left as soon as that mirror answers', { ...gone, ioFailed: true, health: { primary: unknown, mirror: answering } }, `buildPark markSurgery park track dropPair record defineSource ${resumed} closePrimary seal`, ioError],
      ['is not asked after an I/O error: the mirror is', { ...gone, ioFailed: true }, 'probe', ioError],
      ['is not put on the park to be armed', { ...nearlyDone, primaryGone: deleted }, ''],
    ]);

    it('gets everything when it comes back: its path may lead to anything', () => {
      assert.equal(recorded(gone).track?.base, 'copying');
    });
  });

  describe('a stale mirror', () => {
    it('must be as it was closed for a delta, and for nothing else', () => {
      const sealed = { ...record.onlyPrimary, mirror: { ...record.onlyPrimary.mirror, sealed: '17 4096 today' } };
      assert.equal(argumentsOf('openMirror', { ...exposed, record: sealed }).sealed, '17 4096 today');
      assert.equal(argumentsOf('openMirror', { ...exposed, record: { ...sealed, track: null } }).sealed, null);
      assert.equal(recorded({ ...exposed, record: sealed, touched: ['mirror'] }).track, null);
    });

    table([
      ['is opened, not copied in full', exposed, 'openMirror'],
      ['is copied in full if somebody wrote to it while it was closed, and that is recorded first', { ...exposed, touched: ['mirror'] }, 'record'],
      ["is taken for failed when the guest's I/O fails during a delta", { ...syncing, ioFailed: true, graph: { ...graph.exposed, mirrorOpen: true, syncJob: job({ type: 'backup' }) } }, 'cancelSync suspect', ioError],
      ['gets a bitmap for the passes, so that the tracking bitmap forgets nothing', syncing, 'track'],
      ['gets all again when it is opened again', { ...exposed, graph: { ...graph.exposed, tracking: pass('primary', 0) } }, 'untrack openMirror'],
      ['gets deltas while much is left', { ...syncing, graph: { ...graph.exposed, mirrorOpen: true, tracking: pass('primary', 5 * 1024 * 1024) } }, 'startDelta'],
      ['is armed after enough passes although much is left', { ...syncing, deltaPasses: 8, graph: { ...graph.exposed, mirrorOpen: true, tracking: pass('primary', 5 * 1024 * 1024) } }, `buildPark flush ${paused} finishDelta flush compose addEpoch record ${told} ${resumed} ${armed}`],
      ['is closed when it fails', { ...syncing, health: { primary: unknown, mirror: failed } }, 'closeMirror seal'],
      ['is copied in full when the disk was resized since', { ...syncing, record: { ...record.onlyPrimary, track: { bitmap: 'cdp-track-1-4096', base: 'whole' } }, graph: { ...graph.exposed, mirrorOpen: true, tracking: [{ name: 'cdp-track-1-4096', on: 'primary', dirtyBytes: 0 }] } }, 'untrack record track startFullSync'],
      ['is copied in full when its bitmap is gone', { ...syncing, graph: { ...graph.plain, mirrorOpen: true } }, 'record track startFullSync'],
      ['is copied in full after a snapshot moved the disk to another image', { ...syncing, liveImage: newImage }, 'record'],
      ['is never trusted when the domain started on the primary alone', { graph: graph.plain }, 'record'],
    ]);

    it('is a mixture of times from the first pass on', () => {
      const whole = { ...record.onlyPrimary, mirror: { ...record.onlyPrimary.mirror, consistentAsOf: '2026-01-01T00:00:00.000Z' } };
      assert.equal(planned({ ...syncing, record: whole }), 'record track');
      assert.equal(recorded({ ...syncing, record: whole }).mirror.consistentAsOf, null);
    });

    it('is the target of the sync, and the primary the source', () => {
      const unfinished = { ...syncing, graph: { ...graph.exposed, mirrorOpen: true, tracking: pass('primary', 5 * 1024 * 1024) } };
      for (const { from, to, bitmap } of [argumentsOf('startDelta', unfinished), argumentsOf('finishDelta', nearlyDone)]) {
        assert.deepEqual([from, to, bitmap], ['libvirt-1-format', 'cdp-vda-mirror', 'cdp-track-1-pass']);
      }
      const { from, to } = argumentsOf('startFullSync', { ...syncing, graph: { ...graph.plain, mirrorOpen: true } });
      assert.deepEqual([from, to], ['libvirt-1-format', 'cdp-vda-mirror']);
    });
  });

  describe('a pair', () => {
    it('whose disk is an overlay now has nobody start from what lies under it, until that is its disk again', () => {
      const moved = recorded({ liveImage: newImage });
      assert.deepEqual([moved.primary.image, moved.retired], [newImage, [primaryImage]]);
      const back = recorded({ record: moved, liveImage: primaryImage });
      assert.deepEqual([back.primary.image, back.retired], [primaryImage, [newImage]]);
    });

    table([
      ['is left alone', {}, ''],
      ['begins a new epoch when the last one is old', { epochs: { rotate: true, flushed: [] } }, 'addEpoch'],
      ['drops epochs that both copies have flushed', { epochs: { rotate: false, flushed: ['cdp-epoch-1'] } }, 'requireConnected dropEpoch'],
      ['is recorded when a crash came before that', { record: record.onlyPrimary }, 'requireConnected record note note'],
      ['loses bitmaps that a crash left', { graph: { ...graph.pair, tracking: [{ name: 'cdp-track-1', on: 'primary', dirtyBytes: 0 }] } }, 'untrack'],
      ['puts the XML right', { xmlBehind: true }, 'defineSource'],
      ['is asked about an I/O error that nobody owns', { ioFailed: true }, 'probe probe', ioError],
      ['never goes on after an error that both copies survive: the mirror may have lost writes', { ioFailed: true, health: { primary: answering, mirror: answering } }, `buildPark markSurgery park track dropPair record ${resumed} closeMirror seal`, ioError],
      ['waits while both copies fail', { ioFailed: true, health: { primary: failed, mirror: failed } }, 'probe probe', ioError],
      ['waits for room on a full primary', { ioFailed: true, health: { primary: full, mirror: unknown } }, '', ioError],
      ['is left for the mirror only if that answers', withIntent({}, { kind: 'failover' }), `requireAnswer buildPark ${paused} track dropPair record defineSource ${resumed} closePrimary seal`],
      ['is held on request', withIntent({}, { kind: 'hold' }), `requireAnswer buildPark ${paused} track dropPair record ${resumed} closeMirror seal`],
      ['is taken apart for a full resync', withIntent({}, { kind: 'resync' }), `requireAnswer buildPark ${paused} track dropPair record ${resumed} closeMirror seal`],
      ['is taken apart to be forgotten', withIntent({}, { kind: 'remove' }), `requireAnswer buildPark ${paused} track dropPair record ${resumed} closeMirror seal`],
      ['stays suspended when its user suspended it; the next look takes the mark away', withIntent({}, { kind: 'hold' }), 'requireAnswer buildPark markSurgery park track dropPair record unpark closeMirror seal', { run: 'suspended' }],
      ['is left at once when an I/O has just shown which copy is well', { ioFailed: true, health: { primary: failed, mirror: unknown } }, `buildPark markSurgery park track dropPair record defineSource ${resumed} closePrimary seal`, ioError],
      ['is to be left, and that is recorded, when a read failed that the mirror answered: QEMU tells that once', { health: { primary: failed, mirror: unknown } }, 'record'],
      ['is left only if the other copy answers when the damage was found otherwise', { record: { ...record.both, intent: { kind: 'failover' } }, health: { primary: failed, mirror: unknown } }, `requireAnswer buildPark ${paused} track dropPair record defineSource ${resumed} closePrimary seal`],
      ['is not touched during a migration or a save', withIntent({}, { kind: 'hold' }), '', { run: 'hands-off' }],
    ]);
  });

  describe('with policy strict', () => {
    const lost = { ioFailed: true, health: { primary: unknown, mirror: failed } };
    const waiting: DiskParts = { record: record.onlyPrimary, graph: { ...graph.exposed, layout: 'parked', root: 'cdp-vda-park' }, ioFailed: true };
    const strict = { run: 'io-error', policy: 'strict' } as const;
    table([
      ['a guest that lost its mirror stays parked', lost, 'buildPark markSurgery park track dropPair record', strict],
      ['its mirror is opened meanwhile', waiting, 'openMirror', strict],
      ['it goes on when both copies are equal again', { ...waiting, health: { primary: unknown, mirror: answering }, graph: { ...graph.exposed, layout: 'parked', root: 'cdp-vda-park', mirrorOpen: true, tracking: pass('primary', 0) } }, `buildPark flush park finishDelta flush compose addEpoch record ${told} ${resumed} ${armed}`, { ...strict, surgeryMarked: true }],
      ['a lost primary is failed over all the same', { ioFailed: true, health: { primary: failed, mirror: unknown } }, `buildPark markSurgery park track dropPair record defineSource ${resumed} closePrimary seal`, strict],
    ]);
  });

  describe('a domain that has just started', () => {
    const stopped = { ...record.both, instance: 'boot/0', state: 'stopped', since: '2026-01-01T00:00:00.000Z' } as const;
    const alone = { record: { ...record.onlyPrimary, track: null }, graph: { ...graph.plain, mirrorOpen: true } };
    const outage: DiskRecord = { ...record.onlyPrimary, instance: 'boot/0' };
    const keptAcross: DiskParts = { graph: { ...graph.exposed, parkReady: false } };
    const opened: DiskParts = { ...alone, atStop: { clean: true, primary: '17 4096 today' } };
    const crashed: DiskParts = { ...alone, atStop: { clean: false, primary: '17 4096 today' } };
    const copying: DiskRecord = { ...record.onlyPrimary, track: { bitmap: 'cdp-track-1', base: 'copying' } };
    const snapshotSync = (part: Parameters<typeof job>[0]): DiskGraph => ({ ...graph.exposed, mirrorOpen: true, syncJob: job({ type: 'backup', ...part }) });
    table([
      ['runs on the primary alone, and that is recorded', { record: stopped, graph: graph.plain }, 'record'],
      ['takes over what its image has kept of an outage, under a new name', { ...keptAcross, record: outage }, 'track record untrack'],
      ['takes over nothing of a full sync that was under way', { ...keptAcross, record: { ...outage, track: { bitmap: 'cdp-track-1', base: 'copying' } } }, 'record'],
      ['takes over nothing that its record does not name', { ...keptAcross, record: { ...outage, track: { bitmap: 'cdp-track-2', base: 'whole' } } }, 'record'],
      ['takes over nothing from the overlay of a snapshot', { ...keptAcross, record: outage, liveImage: newImage }, 'record'],
      ['opens the mirror if both were identical', { ...opened, graph: graph.plain }, 'openMirror'],
      ['is armed without copying if the guest has not written yet', opened, `buildPark ${paused} requireUntouched compose addEpoch record note ${resumed}`],
      ['is not, if it may have', { ...opened, atStop: null }, 'record track startFullSync'],
      ['opens the mirror after a crash', { ...crashed, graph: graph.plain }, 'openMirror'],
      ['is copied as it was at the crash if the guest has not written yet', crashed, 'record track startSnapshotSync requireUntouched record'],
      ['is copied as any other, if it may have', { ...crashed, atStop: null }, 'record track startFullSync'],
      ['has a whole mirror when that sync has ended well', { ...crashed, record: copying, graph: snapshotSync({ status: 'concluded' }) }, 'buildPark flush record dismissSync'],
      ['has none when it ended badly', { ...crashed, record: copying, graph: snapshotSync({ status: 'concluded', error: 'Input/output error' }) }, 'dismissSync'],
      ['has none when the mirror failed', { ...crashed, record: copying, graph: snapshotSync({ status: 'concluded' }), health: { primary: unknown, mirror: failed } }, 'dismissSync'],
      ['from an image of which the primary is no part is left alone', { record: stopped, graph: { ...graph.plain, primary: { ...primaryNodes, images: ['/new/vda'] } }, liveImage: newImage }, ''],
    ]);

    it('has a mirror that is whole as of a crash only if that is as it was then', () => {
      const { onlyPrimary } = record;
      const mirror = { ...onlyPrimary.mirror, consistentAsOf: '2026-01-01T00:00:00.000Z', sealed: '18 4096 then' };
      const closed: DiskParts = { ...crashed, record: { ...onlyPrimary, mirror, track: null }, graph: graph.plain };
      assert.equal(argumentsOf('openMirror', closed).sealed, '18 4096 then');
      const touched: DiskParts = { ...closed, atStop: null, touched: ['mirror'] };
      const mixed = recorded(touched);
      assert.equal(mixed.mirror.consistentAsOf, null);
      assert.equal(argumentsOf('openMirror', { ...touched, record: mixed }).sealed, null);
    });

    it('is copied in full if that was asked for, though both were identical', () => {
      const asked = recorded(withIntent(opened, { kind: 'resync' }));
      assert.equal(planned({ ...opened, record: asked }), 'record track startFullSync');
      assert.equal(recorded({ ...opened, record: asked }).track?.why, 'that was asked for');
    });

    it('calls the mirror stale as of the stop', () => {
      const { mirror, instance } = recorded({ record: stopped, graph: graph.plain });
      assert.deepEqual([mirror.current, mirror.consistentAsOf, instance], [false, '2026-01-01T00:00:00.000Z', 'boot/1']);
    });
  });

  describe('a disk that was unplugged', () => {
    const unplugged = { ...record.onlyPrimary, track: null, instance: null };
    table([
      ['leaves nothing open', { graph: null, orphans: ['cdp-vda', 'libvirt-1-format'] }, 'closeOrphans'],
      ['has a mirror that is stale before anybody plugs it in again', { graph: null }, 'record'],
      ['needs nothing then', { graph: null, record: unplugged }, ''],
      ['ends the pause of a guest that waited for it', { graph: null, record: unplugged, ioFailed: true }, 'resume', ioError],
      ['is forgotten when that is asked for', withIntent({ graph: null }, { kind: 'remove' }), 'forget'],
      ['has a definition that names no stale copy, whatever an agent that died left', { graph: null, record: record.onlyMirror, xmlBehind: true }, 'defineSource'],
      ['of which the record says so first', { graph: null, xmlBehind: true }, 'record'],
      ['is not forgotten before that', withIntent({ graph: null, record: record.onlyMirror, xmlBehind: true }, { kind: 'remove' }), 'defineSource'],
      ['leaves nothing open when it was plugged in again before anybody looked', { graph: { ...graph.plain, pair: graph.pair.pair }, orphans: ['cdp-vda', 'libvirt-1-format'] }, 'closeOrphans'],
      ['is synced when it is plugged in again', { graph: graph.plain, record: unplugged }, 'record'],
      ['never becomes the source of a sync as another disk', { graph: { ...graph.plain, primary: { ...primaryNodes, images: ['/new/vda'] } }, record: unplugged, liveImage: newImage }, ''],
    ]);

    it('calls the mirror stale as of the look, and full of nothing that a bitmap knows', () => {
      const { mirror, track, atStop, instance } = recorded({ graph: null, record: { ...record.both, atStop: { clean: true, primary: '17 4096 today' } } });
      assert.deepEqual([mirror.current, track, atStop, instance], [false, null, null, null]);
      assert.notEqual(mirror.consistentAsOf, null);
    });
  });

  describe('a save, a dump or a migration', () => {
    const underway = { ...syncing, graph: { ...graph.exposed, mirrorOpen: true, syncJob: job({}) } };
    table([
      ['ends a sync, which would abort QEMU', underway, 'cancelSync', { migrating: true }],
      ['ends it also while nothing else may be done', underway, 'cancelSync', { migrating: true, run: 'hands-off' }],
      ['is cancelled where the other host would open a stale primary', onMirror, 'cancelMigration', { migrating: true, leaving: true, run: 'hands-off' }],
      ['may take along a domain on its primary', exposed, '', { migrating: true, leaving: true, run: 'hands-off' }],
      ['lets none begin', { ...nearlyDone, graph: { ...nearlyDone.graph!, parkReady: false } }, '', { migrating: true }],
    ]);
  });

  describe('a held disk', () => {
    const held = withIntent(exposed, { kind: 'hold' });
    table([
      ['gives everything back but its bitmap', { ...held, graph: { ...graph.exposed, mirrorOpen: true } }, 'closeMirror seal'],
      ['is left alone then', { ...held, graph: { ...graph.exposed, parkReady: false } }, ''],
      ['records that its bitmap is gone', { ...held, graph: graph.plain }, 'record'],
    ]);
  });

  describe('a disk that is failed over', () => {
    table([
      ['loses the dead primary', { ...onMirror, graph: { ...graph.mirror, primary: primaryNodes } }, 'closePrimary seal'],
      ['puts the XML right', { ...onMirror, xmlBehind: true }, 'defineSource'],
      ['is left alone then', onMirror, ''],
      ['waits for its only copy', { ...onMirror, ioFailed: true, health: { primary: unknown, mirror: failed }, mayRetry: false }, '', ioError],
      ['asks its only copy', { ...onMirror, ioFailed: true }, 'probe', ioError],
      ['asks one on iSCSI when its relay is there again', { ...onMirror, record: onLun, ioFailed: true }, 'reviveRelay probe', ioError],
      ['goes on when that answers', { ...onMirror, record: onLun, ioFailed: true, health: { primary: unknown, mirror: answering } }, 'resume', ioError],
      ['goes on when that answers', { ...onMirror, ioFailed: true, health: { primary: unknown, mirror: answering } }, 'resume', ioError],
      ['gets layers for a rebuild', withIntent(onMirror, rebuildToNew), `buildPark ${paused} buildLayers ${resumed} startCopy`],
      ['gets the copy before its guest goes on, if an I/O thread serves it', { ...withIntent(onMirror, rebuildToNew), ioThread: true }, `buildPark ${paused} buildLayers unpark startCopy resume unmarkSurgery removePark`],
      ['loses them when the rebuild is called off', { ...onMirror, graph: graph.layered }, `buildPark ${paused} closePrimary ${resumed}`],
      ['aborts the copy before that', { ...onMirror, graph: { ...graph.layered, otherJob: job({}) } }, 'abortCopy'],
      ['gives a rebuild up when its copy fails', { ...withIntent(onMirror, rebuildToNew), graph: graph.layered, copyFailed: 'no space' }, 'record note'],
      ['opens the old primary for a rebuild to it', withIntent(onMirror, rebuildToOriginal), 'openPrimary'],
      ['is copied back by delta', { ...withIntent(onMirror, rebuildToOriginal), graph: { ...graph.mirror, primary: primaryNodes, tracking: pass('mirror', 0) }, health: { primary: answering, mirror: unknown } }, `buildPark flush ${paused} finishDelta flush compose addEpoch record ${told} defineSource ${resumed} ${armed}`],
    ]);

    it('is the source of the delta, and its primary the target', () => {
      const { from, to } = argumentsOf('finishDelta', { ...withIntent(onMirror, rebuildToOriginal), graph: { ...graph.mirror, primary: primaryNodes, tracking: pass('mirror', 0) }, health: { primary: answering, mirror: unknown } });
      assert.deepEqual([from, to], ['cdp-vda-mirror', 'libvirt-1-format']);
    });
  });

  describe('a domain that libvirt started on the mirror', () => {
    const started: DiskParts = { record: record.onlyMirror, graph: graph.plain, liveImage: mirrorImage };
    table([
      ['records that the primary is stale', { ...started, record: record.both }, 'record'],
      ['is left alone then', started, ''],
      ["is rebuilt by libvirt's copy", withIntent(started, rebuildToNew), 'startCopy'],
      ["is rebuilt by libvirt's copy in a pause, if an I/O thread serves it", { ...withIntent(started, rebuildToNew), ioThread: true }, `buildPark ${paused} unpark startCopy resume unmarkSurgery removePark`],
      ["is rebuilt to the original by libvirt's copy too: there is no bitmap", withIntent(started, rebuildToOriginal), 'record'],
      ['runs on a stale mirror: nothing can be done to it', { ...started, record: record.onlyPrimary }, ''],
    ]);
  });

  describe('a surgery that was broken off', () => {
    const crashed = { run: 'surgery', surgeryMarked: true } as const;
    table([
      ['after compose: the pair is recorded and given to the guest', { graph: graph.parkedPair, record: record.onlyPrimary }, `park record ${told} ${resumed}`, crashed],
      ['after compose, and with a wish to be held: first as above', withIntent({ graph: graph.parkedPair, record: record.onlyPrimary }, { kind: 'hold' }), `park record ${told} ${resumed}`, crashed],
      ['after compose, when the mirror is lost as well', { graph: graph.parkedPair, record: record.onlyMirror, health: { primary: unknown, mirror: failed } }, `requireAnswer park track dropPair record defineSource ${resumed} closeMirror seal`, crashed],
      ['before compose: the primary is given back', { ...nearlyDone, graph: { ...graph.exposed, layout: 'parked', root: 'cdp-vda-park' } }, `park ${resumed}`, crashed],
      ['of a failover, before the record', { graph: { ...graph.parked, tracking: [{ name: 'cdp-track-1', on: 'mirror', dirtyBytes: 0 }] } }, `park track record defineSource ${resumed} closePrimary seal`, crashed],
      ['of a failover, after the record: the XML follows before the guest runs', { ...onMirror, graph: { ...graph.parked, primary: null }, xmlBehind: true }, `park defineSource ${resumed}`, crashed],
      ['of a rebuild, before the pivot', { ...withIntent(onMirror, rebuildToNew), graph: { ...graph.parked, primary: null, layers: ['libvirt-1-format'], otherJob: job({ ready: true }) } }, 'park pivot', crashed],
      ['with a delta under way: it is cancelled first', { ...nearlyDone, graph: { ...graph.parked, syncJob: job({ type: 'backup' }) } }, 'cancelSync', crashed],
      ['after the resume: the mark is taken away', {}, 'unmarkSurgery', { surgeryMarked: true }],
      ['of a disk that is to be forgotten: the guest goes on before its record is gone', withIntent({ record: record.onlyPrimary, graph: graph.plain }, { kind: 'remove' }), 'resume unmarkSurgery', crashed],
      ['of a suspended one: the mark goes before the record', withIntent({ record: record.onlyPrimary, graph: graph.plain }, { kind: 'remove' }), 'unmarkSurgery', { run: 'suspended', surgeryMarked: true }],
      ['before the resume: the guest goes on', {}, 'resume unmarkSurgery', crashed],
    ]);
  });

  it('knows that a pair is equal, whatever the record said before it was composed', () => {
    const brokenOff = { graph: graph.parkedPair, record: record.onlyMirror };
    const crashed = { run: 'surgery', surgeryMarked: true } as const;
    const { primary, mirror } = recorded({ ...brokenOff, health: { primary: unknown, mirror: failed } }, crashed);
    assert.deepEqual([primary.current, mirror.current], [true, false]);
    const failedOver = recorded({ graph: graph.parkedPair, record: record.onlyPrimary, health: { primary: failed, mirror: unknown } }, crashed);
    assert.deepEqual([failedOver.primary.current, failedOver.mirror.current], [false, true]);
  });

  describe('two disks', () => {
    const second = (parts: DiskParts): DiskParts => ({ ...parts, record: { ...(parts.record ?? record.both), dev: 'vdb' } });
    const lost: DiskParts = { ioFailed: true, health: { primary: unknown, mirror: failed } };
    table([
      ['are operated on in one pause, with one record', [lost, second(lost)], `buildPark buildPark markSurgery park park track dropPair track dropPair record unpark ${resumed} removePark closeMirror seal closeMirror seal`, ioError],
      ['do not go on while the other pair failed and nobody knows which copy', [lost, second({ ioFailed: true })], 'buildPark markSurgery park track dropPair record unpark', ioError],
      ['are armed in one pause when both are ready', [nearlyDone, second(nearlyDone)], `buildPark flush buildPark flush ${paused} park finishDelta flush compose addEpoch finishDelta flush compose addEpoch record ${told} ${told} unpark ${resumed} removePark ${armed} ${armed}`],
      ['do not go on while the other is parked', [nearlyDone, second({ record: record.onlyPrimary, graph: { ...graph.exposed, layout: 'parked', root: 'cdp-vda-park' } })], `buildPark flush ${paused} park finishDelta flush compose addEpoch record ${told} unpark ${resumed} removePark ${armed}`],
    ]);
  });
});
