import assert from 'node:assert/strict';
import { DomainMemory } from '../../src/protection/domain-memory.ts';
import { diskSeen, graph, type DiskParts } from './observations.ts';

const told: DiskParts = { graph: graph.mirrorJob, engine: 'mirror', withoutStopPolicy: 'it lacks the stop policy' };
const ioError = {
  event: 'BLOCK_IO_ERROR',
  timeMs: 0,
  data: { 'node-name': 'cdp-vda', operation: 'write', action: 'report', reason: 'EIO' },
};
const full = { ...ioError, data: { ...ioError.data, action: 'stop', nospace: true } };
const reset = { event: 'RESET', timeMs: 0, data: {} };

describe('what is remembered of a disk whose guest is told of I/O errors', () => {
  function memoryAfter(disk: DiskParts, ...events: (typeof ioError | typeof reset)[]): DomainMemory {
    const memory = new DomainMemory();
    for (const event of events) memory.learn(event, [diskSeen(disk)], () => undefined);
    return memory;
  }

  it('is that its primary failed, but not that the guest waits for it', () => {
    const memory = memoryAfter(told, ioError);
    assert.equal(memory.of('vda').health.primary.is, 'failed');
    assert.deepEqual([...memory.failing], []);
    assert.doesNotThrow(() => memory.requireNoFailedPair([diskSeen(told)]));
  });

  it('is that a guest waits that finds no space', () => {
    assert.deepEqual([...memoryAfter(told, full).failing], ['vda']);
  });

  it('is nothing of a reset, at which no request waited to be tried again', () => {
    assert.equal(memoryAfter(told, reset).of('vda').health.mirror.is, 'unknown');
    assert.equal(memoryAfter({}, reset).of('vda').health.mirror.is, 'failed');
  });
});
