import assert from 'node:assert/strict';
import { spareCopies } from '../../../src/protection/hangs/copies-in-use.ts';
import { diskSeen, graph } from '../observations.ts';

describe('the copies that a guest can do without', () => {
  it('are both of a pair', () => {
    assert.deepEqual(spareCopies(diskSeen({ graph: graph.pair })), ['primary', 'mirror']);
  });

  it('are not the primary where the guest would be told of what fails on it', () => {
    const told = { graph: graph.mirrorJob, withoutStopPolicy: 'it lacks the stop policy' };
    assert.deepEqual(spareCopies(diskSeen(told)), ['mirror']);
  });
});
