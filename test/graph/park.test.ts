import assert from 'node:assert/strict';
import { diskNames } from '../../src/graph/names.ts';
import { buildPark } from '../../src/graph/surgery.ts';
import { flushNode } from '../../src/sync/flush.ts';
import { areInstalled, RealQemu } from '../qmp/real-qemu.ts';

const sizeBytes = 1 << 20;
const { park, nothing } = diskNames('vda');

describe('a park in a real QEMU', function () {
  this.timeout(20_000);
  let qemu: RealQemu;

  before(async function () {
    if (!(await areInstalled('qemu-system-x86_64'))) this.skip();
    qemu = await RealQemu.start();
    await buildPark(qemu.monitor, 'vda', sizeBytes);
    assert.match(await qemu.said(), /^write failed/, 'what buildPark wrote itself');
  });

  after(() => qemu.end());

  // The first, before any other write: QEMU leaves out a flush of a node that was not written to, and says that it is done.
  it('fails a flush', () => assert.rejects(flushNode(qemu.monitor, 'flush', nothing, park), /the flush of .* failed/));

  for (const request of [
    'read 0 4k',
    'write 0 4k',
    'write -f 0 4k',
    'write -z 0 4k',
    'write -z -u 0 4k',
    'discard 0 4k',
  ])
    it(`fails ${request}`, async () => assert.match(await qemu.request(park, request), /failed: Input\/output error$/));
});
