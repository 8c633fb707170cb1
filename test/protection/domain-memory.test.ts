import assert from 'node:assert/strict';
import { DomainMemory } from '../../src/protection/domain-memory.ts';
import { diskSeen, graph, record } from './observations.ts';

describe('what QEMU tells of a mirror that fails', () => {
  let memory: DomainMemory;
  let told: string[];

  beforeEach(() => {
    memory = new DomainMemory();
    told = [];
  });

  function hear(type: 'write' | 'flush', timeMs: number, disk = diskSeen()): void {
    const data = { type, 'node-name': 'cdp-vda-mirror', error: 'Input/output error' };
    memory.learn({ event: 'QUORUM_REPORT_BAD', timeMs, data }, [disk], (_dev, _side, why) => told.push(why));
  }

  /** The guest goes on with its primary alone. */
  function leavePair(): void {
    memory.of('vda').closed('mirror');
    memory.of('vda').movedOn(performance.now());
  }

  it('is told once, also if QEMU held some of it back until the guest had left the mirror', () => {
    const atMs = Date.now() - 100;
    hear('write', atMs);
    leavePair();
    hear('flush', atMs, diskSeen({ graph: graph.exposed, record: record.onlyPrimary }));
    assert.deepEqual(told, ['write: Input/output error']);
  });

  it('is not taken for an error of the next pair', () => {
    const atMs = Date.now() - 100;
    leavePair();
    memory.of('vda').opened('mirror');
    hear('write', atMs);
    assert.deepEqual([told, memory.of('vda').health.mirror.is], [[], 'answering']);
  });

  it('is told again when it fails again', () => {
    hear('write', Date.now() - 1);
    leavePair();
    memory.of('vda').opened('mirror');
    hear('write', Date.now() + 1);
    assert.deepEqual(told, ['write: Input/output error', 'write: Input/output error']);
  });

  for (const [how, byMs] of [
    ['back', -3_600_000],
    ['forward', 3_600_000],
  ] as const)
    it(`is told although the host's clock was put ${how} after the guest had moved on`, () => {
      leavePair();
      memory.of('vda').opened('mirror');
      const { now } = Date;
      Date.now = () => now() + byMs;
      try {
        hear('write', Date.now());
      } finally {
        Date.now = now;
      }
      assert.deepEqual(told, ['write: Input/output error']);
    });

  it('is told although the clock was put forward between the error and its event', () => {
    leavePair();
    memory.of('vda').opened('mirror');
    hear('write', Date.now() - 3_600_000);
    assert.deepEqual(told, ['write: Input/output error']);
  });
});

describe('that the copies are identical', () => {
  it('is forgotten when a device is unplugged: the next one has counted none of its writes', () => {
    const memory = new DomainMemory();
    memory.of('vda').atStop = { clean: true, primary: null };
    memory.learn({ event: 'DEVICE_DELETED', timeMs: Date.now(), data: {} }, [diskSeen()], () => undefined);
    assert.equal(memory.of('vda').atStop, null);
  });
});
