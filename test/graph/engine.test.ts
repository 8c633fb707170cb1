import assert from 'node:assert/strict';
import { compose, composeCopying, dissolve, hasQuorum, promote } from '../../src/graph/engine.ts';
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

  describe('that copies everything first', () => {
    /** A QEMU whose job is as `job` says, and is gone when it is cancelled. */
    function qemuWith(answers: Answers, job: object): FakeQemu {
      const qemu: FakeQemu = new FakeQemu({
        'query-status': () => ({ running: false }),
        'query-block-jobs': () =>
          qemu.sent.includes('block-job-cancel cdp-vda-pair') ? [] : [{ device: 'cdp-vda-pair', len: 0, ...job }],
        'block-job-cancel': () => {
          setImmediate(() => qemu.emit('BLOCK_JOB_CANCELLED', { device: 'cdp-vda-pair' }));
        },
        ...answers,
      });
      return qemu;
    }
    const version = (major: number, minor: number, micro: number): Answers => ({
      'query-version': () => ({ qemu: { major, minor, micro } }),
    });
    const begin = (qemu: FakeQemu): Promise<void> => composeCopying(qemu.monitor, 'vda', 'libvirt-1-format', 5);

    it('begins to copy while the guest stands still', async () => {
      const qemu = qemuWith({}, { len: 1 });
      await begin(qemu);
      assert.ok(
        qemu.sent.includes('blockdev-mirror cdp-vda-pair') && !qemu.sent.includes('block-job-cancel cdp-vda-pair'),
      );
      assert.equal(qemu.listeners, 0);
    });

    it('is not begun under a guest that runs', async () => {
      const running = qemuWith({ 'query-status': () => ({ running: true }) }, { len: 1 });
      await assert.rejects(begin(running), /resumed/);
      assert.ok(!running.sent.includes('blockdev-mirror cdp-vda-pair'));
    });

    it('is none when somebody resumed the guest meanwhile, and QEMU may have missed a write', async () => {
      for (const [misses, numbers] of [
        [true, version(9, 2, 0)],
        [false, version(7, 2, 22)],
      ] as const) {
        const qemu: FakeQemu = qemuWith({ 'blockdev-mirror': () => qemu.emit('RESUME'), ...numbers }, { len: 1 });
        if (misses) await assert.rejects(begin(qemu), /resumed/);
        else await begin(qemu);
        assert.equal(qemu.sent.includes('block-job-cancel cdp-vda-pair'), misses);
      }
    });

    it('is none where QEMU may have missed a write when the guest had to go on', async () => {
      const versions: [Parameters<typeof version>, boolean][] = [
        [[7, 2, 22], false],
        [[8, 2, 0], true],
        [[10, 0, 8], true],
        [[10, 0, 9], false],
        [[10, 1, 5], true],
        [[10, 2, 2], false],
        [[11, 0, 0], false],
      ];
      await Promise.all(
        versions.map(async ([numbers, misses]) => {
          const qemu = qemuWith(version(...numbers), {});
          if (misses) await assert.rejects(begin(qemu), /can miss writes/);
          else await begin(qemu);
          assert.equal(qemu.sent.includes('block-job-cancel cdp-vda-pair'), misses, numbers.join('.'));
        }),
      );
    }).timeout(10_000);
  });

  describe('on whose mirror its job ends', () => {
    function qemuThatEnds(end: string, data: object = {}, running = false): FakeQemu {
      const qemu: FakeQemu = new FakeQemu({
        'query-status': () => ({ running }),
        'block-job-complete': () => {
          setImmediate(() => qemu.emit(end, { device: 'cdp-vda-pair', ...data }));
        },
      });
      return qemu;
    }

    it('leaves the guest there', () => promote(qemuThatEnds('BLOCK_JOB_COMPLETED').monitor, 'vda'));

    it('stays if the mirror can not be flushed', async () => {
      for (const qemu of [qemuThatEnds('BLOCK_JOB_ERROR'), qemuThatEnds('BLOCK_JOB_COMPLETED', { error: 'EIO' })])
        await assert.rejects(promote(qemu.monitor, 'vda'), /could not be flushed/);
    });

    it('stays if the guest runs: a stop meanwhile would end QEMU', async () => {
      const qemu = qemuThatEnds('BLOCK_JOB_COMPLETED', {}, true);
      await assert.rejects(promote(qemu.monitor, 'vda'), /resumed/);
      assert.ok(!qemu.sent.includes('block-job-complete cdp-vda-pair'));
    });
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
