import assert from 'node:assert/strict';
import { kernelWaits, waitsAt } from '../../src/health/kernel-waits.ts';
import { withProcess } from './kernel-process.ts';

describe('what the threads of a process wait for in the kernel', () => {
  // pwrite64, to descriptor 11.
  const writes = '18 0xb 0x7f00 0x1000 0x0 0x0 0x0 0x7ffc 0x7f01';

  it('is seen though another thread ends meanwhile', () =>
    withProcess(
      { threads: { '8': 'ended', '9': { state: 'D', call: writes }, '10': { state: 'S', call: 'running' } }, open: {} },
      (proc) => {
        assert.deepEqual(kernelWaits(7, proc), ['9: 100 20 3']);
        assert.deepEqual(kernelWaits(8, proc), []);
        return Promise.resolve();
      },
    ));

  it('is the file that the call is for, and no other that is open', () =>
    withProcess(
      {
        threads: { '9': { state: 'D', call: writes }, '10': { state: 'S', call: '0 0xc' } },
        open: { '11': '/dev/null', '12': '/dev/zero' },
      },
      async (proc) => {
        const waits = kernelWaits(7, proc);
        assert.equal(await waitsAt(7, waits, '/dev/null', proc), true);
        assert.equal(await waitsAt(7, waits, '/proc/../dev/null', proc), true);
        assert.equal(await waitsAt(7, waits, '/dev/zero', proc), false);
        assert.equal(await waitsAt(7, ['9: 99 20 2'], '/dev/null', proc), false, 'it has run since');
        assert.equal(await waitsAt(7, [], '/dev/null', proc), false);
      },
    ));

  it('is not known of a thread that is in no call', () =>
    withProcess(
      { threads: { '9': { state: 'D', call: '-1 0xb 0x7f00' } }, open: { '11': '/dev/null' } },
      async (proc) => assert.equal(await waitsAt(7, kernelWaits(7, proc), '/dev/null', proc), false),
    ));
});
