import assert from 'node:assert/strict';
import { QmpError, QmpTimeoutError } from '../../src/qmp/errors.ts';
import { jobEndAfter } from '../../src/qmp/jobs.ts';
import { FakeQemu, Refusal, type Answers } from './fake-qemu.ts';

const isJob = ({ event }: { event: string }): boolean => event === 'BLOCK_JOB_READY';

describe('Monitor', () => {
  it('answers what QEMU returns', async () => {
    const qemu = new FakeQemu({ 'query-status': () => ({ running: true, status: 'running' }) });
    assert.deepEqual(await qemu.monitor.execute('query-status', {}), { running: true, status: 'running' });
  });

  it("throws QEMU's refusal, with its class and words", async () => {
    const qemu = new FakeQemu({
      'blockdev-del': () => {
        throw new Refusal("Node 'p' is busy: node is used as backing hd");
      },
    });
    await assert.rejects(qemu.monitor.execute('blockdev-del', { 'node-name': 'p' }), (error) => {
      assert.ok(error instanceof QmpError);
      assert.deepEqual(
        [error.command, error.errorClass, error.description],
        ['blockdev-del', 'GenericError', "Node 'p' is busy: node is used as backing hd"],
      );
      return true;
    });
  });

  it('hears an event that comes before the answer to the command that caused it', async () => {
    const answers: Answers = {};
    const qemu = new FakeQemu(answers);
    answers['cont'] = () => qemu.emit('BLOCK_JOB_READY', { device: 'j' });
    const event = await qemu.monitor.eventAfter('READY', isJob, 1000, () => qemu.monitor.execute('cont', {}));
    assert.equal(event.data['device'], 'j');
    assert.equal(qemu.listeners, 0);
  });

  it('passes over events that are not meant', async () => {
    const qemu = new FakeQemu();
    const event = await qemu.monitor.eventAfter('READY', isJob, 1000, () => {
      qemu.emit('STOP');
      qemu.emit('BLOCK_JOB_READY', { device: 'j' });
      return Promise.resolve();
    });
    assert.equal(event.event, 'BLOCK_JOB_READY');
  });

  it('gives up past the deadline, and says what it waited for', async () => {
    const qemu = new FakeQemu();
    await assert.rejects(
      qemu.monitor.eventAfter('the end of the world', isJob, 5, () => Promise.resolve()),
      (error) =>
        error instanceof QmpTimeoutError && error.message === 'QEMU did not report the end of the world within 5 ms',
    );
    assert.equal(qemu.listeners, 0);
  });

  it('does not wait for what a refused command can never cause', async () => {
    const qemu = new FakeQemu({
      cont: () => {
        throw new Refusal('no');
      },
    });
    await assert.rejects(
      qemu.monitor.eventAfter('READY', isJob, 60_000, () => qemu.monitor.execute('cont', {})),
      QmpError,
    );
    assert.equal(qemu.listeners, 0);
  });
});

describe('jobEndAfter', () => {
  const endOf = (name: string, data: Record<string, unknown>) => {
    const qemu = new FakeQemu();
    return jobEndAfter(qemu.monitor, 'j', 50, () => {
      qemu.emit('BLOCK_JOB_COMPLETED', { device: 'another' });
      qemu.emit(name, { device: 'j', ...data });
      return Promise.resolve();
    });
  };

  it('tells a good end, an error and a cancellation apart', async () => {
    assert.deepEqual(await endOf('BLOCK_JOB_COMPLETED', {}), { ok: true });
    assert.deepEqual(await endOf('BLOCK_JOB_COMPLETED', { error: 'Input/output error' }), {
      ok: false,
      error: 'Input/output error',
    });
    assert.deepEqual(await endOf('BLOCK_JOB_CANCELLED', {}), { ok: false, error: 'cancelled' });
  });

  it('does not take READY for an end', async () => {
    await assert.rejects(endOf('BLOCK_JOB_READY', {}), QmpTimeoutError);
  });
});
