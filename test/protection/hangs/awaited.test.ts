import assert from 'node:assert/strict';
import { awaitedCopies, type Waiting } from '../../../src/protection/hangs/awaited.ts';
import { parseImageUri } from '../../../src/storage/image.ts';
import { diskSeen, graph, record } from '../observations.ts';

describe('the copies that QEMU is seen to wait for', () => {
  const waiting: Waiting = {
    pid: process.pid,
    stuckMs: 15_000,
    threads: [],
    yanked: { primary: false, mirror: false },
  };
  const both = record.both;
  const onServer = (name: string) => ({ ...both.mirror, image: parseImageUri(`nbd://127.0.0.1:1/${name}`) });
  const beside = diskSeen({ graph: graph.pair, record: { ...both, mirror: onServer('mirror') } });

  it('are none of which nothing shows it', async () => {
    assert.deepEqual(await awaitedCopies(beside, waiting), []);
    assert.deepEqual(await awaitedCopies(beside, { ...waiting, pid: null }), []);
  });

  it('are the one in a file, if threads wait in the kernel', async () => {
    assert.deepEqual(await awaitedCopies(beside, { ...waiting, threads: ['7: 1 2 3'] }), ['primary']);
  });

  it('are unknown by the threads if both are in files', async () => {
    const inFiles = diskSeen({ graph: graph.pair, record: { ...both, mirror: both.primary } });
    assert.deepEqual(await awaitedCopies(inFiles, { ...waiting, threads: ['7: 1 2 3'] }), []);
  });

  it('are the other one when one was yanked: nothing waits for that', async () => {
    const yanked = { primary: false, mirror: true };
    assert.deepEqual(await awaitedCopies(beside, { ...waiting, yanked }), ['primary']);
  });
});
