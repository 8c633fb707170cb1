import assert from 'node:assert/strict';
import { mock } from 'node:test';
import type { Protector } from '../../../src/protection/protector.ts';
import type { DiskRecord } from '../../../src/protection/record.ts';
import { AutoRebuild } from '../../../src/protection/requests/auto-rebuild.ts';
import { record } from '../observations.ts';

const declared: DiskRecord = { ...record.onlyMirror, rebuildTo: '/new/{domain}-{dev}-{n}', rebuildAuto: true };

describe('a rebuild that nobody asks for', () => {
  let disk: DiskRecord;
  let begun: number;
  let told: Record<string, unknown>[];
  let auto: AutoRebuild;

  const protector = {
    get record() {
      return { uuid: 'u', disks: [disk] };
    },
    note: (_event: string, _dev: string, detail: Record<string, unknown>) => told.push(detail),
    wake: () => auto.consider(protector, false),
  } as unknown as Protector;

  beforeEach(() => {
    mock.timers.enable({ apis: ['setTimeout', 'Date'] });
    [disk, begun, told] = [declared, 0, []];
    auto = new AutoRebuild(() => {
      begun += 1;
      return Promise.reject(new Error('no space'));
    });
  });

  afterEach(() => mock.timers.reset());

  async function after(seconds: number): Promise<void> {
    mock.timers.tick(seconds * 1000);
    await new Promise((resolve) => setImmediate(resolve));
  }

  it('is tried again after 10 s, and then after twice as long each time, up to 10 minutes', async () => {
    auto.consider(protector, false);
    await after(0);
    for (const seconds of [10, 20, 40, 80, 160, 320, 600, 600]) {
      assert.equal(told.at(-1)?.['againInMs'], seconds * 1000);
      const before = begun;
      await after(seconds - 1);
      protector.wake();
      assert.equal(begun, before, `not before ${seconds} s are over`);
      await after(1);
      assert.equal(begun, before + 1, `after ${seconds} s`);
    }
  });

  it('is begun anew without a pause once the disk had a current primary in between', async () => {
    auto.consider(protector, false);
    disk = { ...record.both, rebuildTo: declared.rebuildTo, rebuildAuto: true };
    auto.consider(protector, false);
    disk = declared;
    auto.consider(protector, false);
    assert.equal(begun, 2);
    await after(0);
    assert.equal(told.at(-1)?.['againInMs'], 10_000);
  });

  it('is begun where it is declared, or the host wants it for all, and somewhere to put it is named', () => {
    const cases: [Partial<DiskRecord>, always: boolean, begins: boolean][] = [
      [{}, false, true],
      [{ rebuildAuto: false }, false, false],
      [{ rebuildAuto: false }, true, true],
      [{ rebuildTo: null }, true, false],
      [{ state: 'broken' }, true, false],
      [{ intent: { kind: 'failover' } }, true, false],
    ];
    for (const [part, always, begins] of cases) {
      [disk, begun] = [{ ...declared, ...part }, 0];
      new AutoRebuild(() => Promise.resolve(void (begun += 1))).consider(protector, always);
      assert.equal(begun > 0, begins, JSON.stringify(part));
    }
  });
});
