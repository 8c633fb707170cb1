import assert from 'node:assert/strict';
import { compose, dissolve, hasQuorum } from '../../src/graph/engine.ts';
import { FakeQemu, Refusal, type Answers } from '../qmp/fake-qemu.ts';

const refuses = (command: string, why: string): Answers => ({
  [command]: () => {
    throw new Refusal(why);
  },
});

describe('hasQuorum', () => {
  it('asks QEMU: one that wants children has it, in the words of 7.2', async () => {
    const qemu = new FakeQemu(refuses('blockdev-add', 'Number of provided children must be 1 or more'));
    assert.equal(await hasQuorum(qemu.monitor), true);
    assert.deepEqual(qemu.sent, ['blockdev-add cdp-no-quorum']);
  });

  it('is not there when QEMU knows no such driver, or may not use it', async () => {
    for (const why of ["Unknown driver 'quorum'", "Driver 'quorum' is not whitelisted"])
      assert.equal(await hasQuorum(new FakeQemu(refuses('blockdev-add', why)).monitor), false);
  });
});

describe('a pair by a mirror job', () => {
  function qemuThat(says: string): { qemu: FakeQemu; started: Record<string, unknown>[] } {
    const started: Record<string, unknown>[] = [];
    const qemu: FakeQemu = new FakeQemu({
      'blockdev-mirror': (args) => {
        started.push(args);
        setImmediate(() => qemu.emit(says, { device: 'cdp-vda-pair' }));
      },
    });
    return { qemu, started };
  }

  it('acknowledges nothing before the mirror has answered, and stays when the mirror fails', async () => {
    const { qemu, started } = qemuThat('BLOCK_JOB_READY');
    await compose(qemu.monitor, 'vda', 'libvirt-1-format', 'mirror');
    assert.deepEqual(started, [
      {
        'job-id': 'cdp-vda-pair',
        device: 'libvirt-1-format',
        target: 'cdp-vda-mirror',
        sync: 'none',
        'copy-mode': 'write-blocking',
        'filter-node-name': 'cdp-vda',
        'on-source-error': 'stop',
        'on-target-error': 'stop',
        speed: 0,
      },
    ]);
  });

  it('is none when the mirror could not be flushed', async () => {
    const { qemu } = qemuThat('BLOCK_JOB_ERROR');
    await assert.rejects(compose(qemu.monitor, 'vda', 'libvirt-1-format', 'mirror'), /could not be flushed/);
  });

  it('goes with its job', async () => {
    const qemu: FakeQemu = new FakeQemu({
      'query-block-jobs': () =>
        qemu.sent.includes('block-job-cancel cdp-vda-pair') ? [] : [{ device: 'cdp-vda-pair' }],
      'block-job-cancel': () => {
        setImmediate(() => qemu.emit('BLOCK_JOB_COMPLETED', { device: 'cdp-vda-pair' }));
      },
    });
    await dissolve(qemu.monitor, 'vda');
    assert.ok(qemu.sent.includes('block-job-cancel cdp-vda-pair'));
  });
});
