import assert from 'node:assert/strict';
import { judge, type Evidence, type Verdict } from '../../../src/protection/hangs/verdict.ts';

const patienceMs = 5_000;

describe('a disk whose requests do not end', () => {
  const pair: Omit<Evidence, 'stuckMs'> = {
    answers: { primary: 'answers', mirror: 'answers' },
    spare: ['primary', 'mirror'],
    target: null,
    otherJob: false,
  };
  const both = { primary: 'silent', mirror: 'silent' } as const;

  const cases: [what: string, evidence: Evidence, verdict: Verdict | null][] = [
    ['is not judged while it may be slow', { ...pair, answers: { ...both, primary: 'answers' }, stuckMs: 4_999 }, null],
    [
      'hangs on the mirror that does not answer, and is moved off it',
      { ...pair, answers: { ...both, primary: 'answers' }, stuckMs: 5_000 },
      { side: 'mirror', leave: 'mirror' },
    ],
    [
      'hangs on the primary that does not answer, and is moved off it',
      { ...pair, answers: { ...both, mirror: 'answers' }, stuckMs: 5_000 },
      { side: 'primary', leave: 'primary' },
    ],
    [
      'is left where it is when neither copy answers',
      { ...pair, answers: both, stuckMs: 500_000 },
      { side: 'both', leave: null },
    ],
    [
      'waits longer for a copy that never answered anybody but QEMU',
      { ...pair, answers: { primary: 'answers', mirror: 'never answered' }, stuckMs: 14_999 },
      null,
    ],
    [
      'but not for ever',
      { ...pair, answers: { primary: 'answers', mirror: 'never answered' }, stuckMs: 15_000 },
      { side: 'mirror', leave: 'mirror' },
    ],
    ['is not judged soon when both copies answer', { ...pair, stuckMs: 14_999 }, null],
    [
      'is moved off the mirror when both answer and it takes long',
      { ...pair, stuckMs: 15_000 },
      { side: null, leave: 'mirror' },
    ],
    [
      'is moved off the primary that answers others and keeps QEMU waiting, when it takes long',
      { ...pair, answers: { primary: 'keeps QEMU waiting', mirror: 'answers' }, stuckMs: 15_000 },
      { side: 'primary', leave: 'primary' },
    ],
    [
      'but not soon: it may be slow',
      { ...pair, answers: { primary: 'keeps QEMU waiting', mirror: 'answers' }, stuckMs: 14_999 },
      null,
    ],
    [
      'is left where it is when both copies keep QEMU waiting',
      { ...pair, answers: { primary: 'keeps QEMU waiting', mirror: 'keeps QEMU waiting' }, stuckMs: 15_000 },
      { side: 'both', leave: null },
    ],
    [
      "is left where it is when a stranger's job may be what hangs",
      { ...pair, otherJob: true, stuckMs: 15_000 },
      { side: null, leave: null },
    ],
    [
      'hangs on its only copy, and has nowhere to go',
      { answers: { primary: 'silent' }, spare: [], target: null, otherJob: false, stuckMs: 5_000 },
      { side: 'primary', leave: null },
    ],
    [
      'is not moved off the current copy while the other is brought up to date',
      { ...pair, spare: ['mirror'], target: 'mirror', answers: { ...both, mirror: 'answers' }, stuckMs: 5_000 },
      { side: 'primary', leave: null },
    ],
    [
      'is moved off a copy that is brought up to date and keeps QEMU waiting, soon',
      {
        ...pair,
        spare: ['mirror'],
        target: 'mirror',
        answers: { primary: 'answers', mirror: 'keeps QEMU waiting' },
        stuckMs: 5_000,
      },
      { side: 'mirror', leave: 'mirror' },
    ],
    [
      'is given time where it can do without the mirror alone, which is current',
      { ...pair, spare: ['mirror'], answers: { primary: 'answers', mirror: 'keeps QEMU waiting' }, stuckMs: 14_999 },
      null,
    ],
    [
      'is moved off a copy that is brought up to date',
      { ...pair, spare: ['mirror'], target: 'mirror', answers: { ...both, primary: 'answers' }, stuckMs: 5_000 },
      { side: 'mirror', leave: 'mirror' },
    ],
  ];
  for (const [what, evidence, verdict] of cases) it(what, () => assert.deepEqual(judge(evidence, patienceMs), verdict));

  const answersOfOne = ['answers', 'silent', 'never answered', 'keeps QEMU waiting'] as const;

  it('is never moved off one copy while the other does not answer', () => {
    for (const primary of answersOfOne)
      for (const mirror of answersOfOne)
        for (const stuckMs of [0, 5_000, 15_000, 3_600_000]) {
          const answers = { primary, mirror };
          const leave = judge({ ...pair, answers, stuckMs }, patienceMs)?.leave ?? null;
          if (leave !== null) assert.equal(answers[leave === 'primary' ? 'mirror' : 'primary'], 'answers');
        }
  });
});
