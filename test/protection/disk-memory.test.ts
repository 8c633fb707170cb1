import assert from 'node:assert/strict';
import { DiskMemory } from '../../src/protection/disk-memory.ts';

describe('a copy that kept QEMU waiting, and answers others', () => {
  it('is left alone for longer each time, and not once somebody asks for it', () => {
    const memory = new DiskMemory();
    assert.equal(memory.restMs('mirror'), 0);
    memory.letRest('mirror', 60_000);
    const first = memory.restMs('mirror');
    memory.letRest('mirror', 60_000);
    assert.ok(first > 0 && memory.restMs('mirror') > first);
    for (let time = 0; time < 20; time++) memory.letRest('mirror', 60_000);
    assert.ok(memory.restMs('mirror') <= 600_000);
    assert.equal(memory.restMs('primary'), 0);
    memory.succeeded();
    assert.ok(memory.restMs('mirror') > first, 'that it was brought up to date says nothing of the next time');
    memory.tryNow();
    assert.equal(memory.restMs('mirror'), 0);
  });
});
