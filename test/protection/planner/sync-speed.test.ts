import assert from 'node:assert/strict';
import { speedStep } from '../../../src/protection/planner/sync-speed.ts';
import { diskSeen, graph, job } from '../observations.ts';

const sizeBytes = graph.plain.sizeBytes;

function speedOf(parts: Parameters<typeof job>[0], deltaPasses = 0): number | null {
  const disk = { ...diskSeen({ pace: { bytesPerS: 100, mostBytesPerS: 500 }, deltaPasses }), graph: graph.plain };
  const [step] = speedStep(disk, job(parts));
  if (step === undefined) return null;
  assert.equal(step.step, 'setSpeed');
  return 'bytesPerS' in step ? step.bytesPerS : null;
}

describe('the speed of a sync that runs', () => {
  it('follows the pace, and is left alone where it has it', () => {
    assert.equal(speedOf({ speed: 7 }), 100);
    assert.equal(speedOf({ speed: 100 }), null);
  });

  it("is the administrator's alone when a mirror has copied as much again: the guest overtakes it, and it might never be ready", () => {
    assert.equal(speedOf({ speed: 100, offset: 2 * sizeBytes }), null);
    assert.equal(speedOf({ speed: 100, offset: 2 * sizeBytes + 1 }), 500);
    assert.equal(speedOf({ speed: 500, offset: 2 * sizeBytes + 1 }), null);
  });

  it("is the administrator's alone from the third delta pass on: what they leave is copied in a pause", () => {
    assert.equal(speedOf({ type: 'backup', speed: 100 }, 1), null);
    assert.equal(speedOf({ type: 'backup', speed: 100 }, 2), 500);
  });

  it('is of no matter to one that is ready or has ended', () => {
    assert.equal(speedOf({ speed: 7, ready: true }), null);
    assert.equal(speedOf({ speed: 7, status: 'concluded' }), null);
  });
});
