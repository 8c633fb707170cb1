import assert from 'node:assert/strict';
import { flushNode } from '../../src/sync/flush.ts';
import {
  cancelSync,
  endFullSync,
  finishDelta,
  setSpeed,
  startDelta,
  startFullSync,
  startSnapshotSync,
} from '../../src/sync/jobs.ts';
import { FakeQemu, Refusal, type Answers } from '../qmp/fake-qemu.ts';

const path = { job: 'cdp-vda-sync', from: 'libvirt-1-format', to: 'cdp-vda-mirror', maxBytesPerS: 1000 };

/** A QEMU whose jobs end as told as soon as a command starts or cancels them; `left` are the jobs' states when somebody asks. */
function jobsThat(
  events: Record<string, [name: string, data?: Record<string, unknown>][]>,
  left: string[] = [],
): {
  qemu: FakeQemu;
  seen: Record<string, unknown>[];
} {
  const seen: Record<string, unknown>[] = [];
  const answers: Answers = {};
  const qemu = new FakeQemu(answers);
  answers['query-block-jobs'] = () => left.map((status) => ({ device: path.job, status }));
  for (const command of ['blockdev-mirror', 'blockdev-backup', 'block-job-cancel']) {
    answers[command] = (args) => {
      seen.push(args);
      for (const [name, data] of events[command] ?? [])
        qemu.emit(name, { device: args['job-id'] ?? args['device'], ...data });
    };
  }
  return { qemu, seen };
}

describe('a full sync', () => {
  it('is a mirror in background mode, which never slows or fails the guest', async () => {
    const { qemu, seen } = jobsThat({});
    await startFullSync(qemu.monitor, path);
    const [{ device, target, sync, 'copy-mode': mode, speed }] = seen as [Record<string, unknown>];
    assert.deepEqual(
      [device, target, sync, mode, speed],
      ['libvirt-1-format', 'cdp-vda-mirror', 'full', 'background', 1000],
    );
  });

  it('is ended without force, so that QEMU makes the target whole', async () => {
    const { qemu, seen } = jobsThat({ 'block-job-cancel': [['BLOCK_JOB_COMPLETED']] });
    await endFullSync(qemu.monitor, 'cdp-vda-sync');
    assert.deepEqual(seen, [{ device: 'cdp-vda-sync', force: false }]);
  });

  it('that ends with an error did not end well', async () => {
    const { qemu } = jobsThat({ 'block-job-cancel': [['BLOCK_JOB_COMPLETED', { error: 'Input/output error' }]] });
    await assert.rejects(endFullSync(qemu.monitor, 'cdp-vda-sync'), /did not end well: Input\/output error/);
  });

  it('that turns out to be cancelled did not end well', async () => {
    const { qemu } = jobsThat({ 'block-job-cancel': [['BLOCK_JOB_CANCELLED']] });
    await assert.rejects(endFullSync(qemu.monitor, 'cdp-vda-sync'), /cancelled/);
  });

  it('that is given up is cancelled with force', async () => {
    const left = ['running'];
    const { qemu, seen } = jobsThat({ 'block-job-cancel': [['BLOCK_JOB_CANCELLED']] }, left);
    qemu.onEvent(() => left.pop());
    await cancelSync(qemu.monitor, 'cdp-vda-sync');
    assert.deepEqual(seen, [{ device: 'cdp-vda-sync', force: true }]);
    assert.ok(!qemu.sent.includes('job-dismiss'));
  });
});

describe('the speed of a sync', () => {
  it('is nothing to a job that has ended meanwhile', async () => {
    const refusing = (errorClass: string): FakeQemu =>
      new FakeQemu({
        'block-job-set-speed': () => {
          throw new Refusal("Block job 'cdp-vda-sync' not found", errorClass);
        },
      });
    await setSpeed(refusing('DeviceNotActive').monitor, 'cdp-vda-sync', 1000);
    await assert.rejects(
      setSpeed(refusing('GenericError').monitor, 'cdp-vda-sync', 1000),
      /refused block-job-set-speed/,
    );
  });
});

describe('a full sync as of its start', () => {
  it('stays when it has ended, so that one who looks later knows how', async () => {
    const { qemu, seen } = jobsThat({});
    await startSnapshotSync(qemu.monitor, path);
    const [{ device, target, sync, 'auto-dismiss': autoDismiss, speed }] = seen as [Record<string, unknown>];
    assert.deepEqual(
      [device, target, sync, autoDismiss, speed],
      ['libvirt-1-format', 'cdp-vda-mirror', 'full', false, 1000],
    );
  });

  it('that is given up is cancelled, and dismissed', async () => {
    const left = ['running'];
    const { qemu } = jobsThat({ 'block-job-cancel': [['BLOCK_JOB_CANCELLED']] }, left);
    qemu.onEvent(() => (left[0] = 'concluded'));
    await cancelSync(qemu.monitor, 'cdp-vda-sync');
    assert.deepEqual(qemu.sent.slice(1), ['block-job-cancel cdp-vda-sync', 'query-block-jobs', 'job-dismiss']);
  });

  it('that has ended is dismissed, and not cancelled', async () => {
    const { qemu } = jobsThat({}, ['concluded']);
    await cancelSync(qemu.monitor, 'cdp-vda-sync');
    assert.deepEqual(qemu.sent.slice(2), ['job-dismiss']);
  });
});

describe('a delta', () => {
  it('keeps its bits unless the whole pass succeeds', async () => {
    const { qemu, seen } = jobsThat({});
    await startDelta(qemu.monitor, path, 'cdp-track-1-pass');
    const [{ sync, bitmap, 'bitmap-mode': mode }] = seen as [Record<string, unknown>];
    assert.deepEqual([sync, bitmap, mode], ['bitmap', 'cdp-track-1-pass', 'on-success']);
  });

  it('of the pause is not slowed down, and waited for', async () => {
    const { qemu, seen } = jobsThat({ 'blockdev-backup': [['BLOCK_JOB_COMPLETED']] });
    await finishDelta(qemu.monitor, path, 'cdp-track-1-pass');
    assert.equal(seen[0]?.['speed'], 0);
    assert.equal(qemu.listeners, 0);
  });

  it('of the pause that fails is no delta', async () => {
    const { qemu } = jobsThat({ 'blockdev-backup': [['BLOCK_JOB_COMPLETED', { error: 'Input/output error' }]] });
    await assert.rejects(finishDelta(qemu.monitor, path, 'cdp-track-1-pass'), /the last delta of cdp-vda-sync failed/);
  });
});

describe('flushNode', () => {
  const flush = (qemu: FakeQemu): Promise<void> =>
    flushNode(qemu.monitor, 'cdp-vda-flush', 'cdp-vda-nothing', 'cdp-vda-mirror');

  it('runs a job that copies nothing, and takes it away when it is ready', async () => {
    const { qemu, seen } = jobsThat({
      'blockdev-mirror': [['BLOCK_JOB_READY']],
      'block-job-cancel': [['BLOCK_JOB_CANCELLED']],
    });
    await flush(qemu);
    assert.deepEqual(qemu.sent, ['blockdev-mirror cdp-vda-flush', 'block-job-cancel cdp-vda-flush']);
    assert.deepEqual(
      [seen[0]?.['device'], seen[0]?.['target'], seen[0]?.['sync']],
      ['cdp-vda-nothing', 'cdp-vda-mirror', 'none'],
    );
  });

  it('fails when the flush fails', async () => {
    const { qemu } = jobsThat({ 'blockdev-mirror': [['BLOCK_JOB_COMPLETED', { error: 'Input/output error' }]] });
    await assert.rejects(flush(qemu), /the flush of cdp-vda-mirror failed: Input\/output error/);
    assert.deepEqual(qemu.sent, ['blockdev-mirror cdp-vda-flush']);
  });
});
