import assert from 'node:assert/strict';
import { plan } from '../../../src/protection/planner/plan.ts';
import type { VerifyView } from '../../../src/protection/verification.ts';
import { answering, failed, graph, job, look, record, unknown, type DiskParts } from '../observations.ts';

const planned = (...situation: Parameters<typeof look>): string =>
  plan(look(...situation))
    .map(({ step }) => step)
    .join(' ');

const calm = { graph: { ...graph.pair, parkReady: false } };
const standing = { graph: { ...calm.graph, instant: true } };
const verify = (is: 'none' | 'wanted' | 'taken'): { verify: VerifyView } => ({ verify: { is } });

describe('plan, of a verify', () => {
  const rows: [sentence: string, disk: DiskParts, steps: string, domain?: Parameters<typeof look>[1]][] = [
    ['takes an instant when one is wanted', { ...calm, ...verify('wanted') }, 'takeInstant'],
    ['takes the next in the place of one', { ...standing, ...verify('wanted') }, 'takeInstant'],
    ['leaves it alone while it is compared', { ...standing, ...verify('taken') }, ''],
    ['sweeps away what nobody wants any more', { ...standing, ...verify('none') }, 'endInstant'],
    ['says so when somebody ended it', { ...calm, ...verify('taken') }, 'endInstant'],
    [
      'compares nothing that is not on both copies',
      { record: record.onlyPrimary, graph: graph.plain, ...verify('wanted') },
      'openMirror',
    ],
    [
      'compares nothing while a mirror job writes both copies',
      { graph: { ...calm.graph, pair: { ...graph.pair.pair, engine: 'mirror' } }, ...verify('wanted') },
      '',
    ],
    [
      "compares nothing beside a stranger's job",
      { graph: { ...calm.graph, otherJob: job({ device: 'backup' }) }, ...verify('wanted') },
      '',
    ],
    [
      'ends it before a copy that failed is left',
      { ...standing, ...verify('taken'), ioFailed: true, health: { primary: failed, mirror: unknown } },
      'endInstant',
      { run: 'io-error' },
    ],
    [
      'ends it before anybody is asked, after an I/O error that nobody explains',
      { ...standing, ...verify('taken'), ioFailed: true },
      'endInstant',
      { run: 'io-error' },
    ],
    ['ends it for a save', { ...standing, ...verify('taken') }, 'endInstant', { run: 'hands-off', migrating: true }],
    [
      'ends it before anything that was asked for',
      { ...standing, ...verify('taken'), record: { ...record.both, intent: { kind: 'failover' } } },
      'endInstant',
    ],
    [
      'marks what is to be repaired, and has the mirror brought up to date',
      { ...calm, verify: { is: 'repair', extents: [{ offset: 0, length: 65536 }] } },
      'markDiffering suspect',
    ],
  ];
  for (const [sentence, disk, steps, domain] of rows) it(sentence, () => assert.equal(planned(disk, domain), steps));

  it('never puts an error that came meanwhile down to the primary, if both copies answer', () => {
    const disk = { ...calm, ioFailed: true, health: { primary: answering, mirror: answering } };
    const [last] = plan(look(disk, { run: 'io-error' })).flatMap((step) => (step.step === 'record' ? [step] : []));
    assert.deepEqual(
      last?.record.disks.map(({ primary, mirror }) => [primary.current, mirror.current]),
      [[true, false]],
    );
  });
});
