import assert from 'node:assert/strict';
import { awaitedCopies, type Waiting } from '../../../src/protection/hangs/awaited.ts';
import { parseImageUri } from '../../../src/storage/image.ts';
import { withProcess } from '../../health/kernel-process.ts';
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

  /** A thread of QEMU's has long been writing to the one. */
  const writing = { pid: 7, threads: ['9: 100 20 3'] };
  const inFile = (path: string) => ({ ...both.primary, image: parseImageUri(`file:${path}`) });
  const inFiles = { ...both, primary: inFile('/dev/null'), mirror: inFile('/dev/zero') };

  it('are the one at whose file a thread waits in the kernel, also if both are in files', () =>
    withProcess({ threads: { '9': { state: 'D', call: '18 0xb' } }, open: { '11': '/dev/null' } }, async (proc) => {
      for (const mirror of [onServer('mirror'), inFiles.mirror]) {
        const disk = diskSeen({ graph: graph.pair, record: { ...inFiles, mirror } });
        assert.deepEqual(await awaitedCopies(disk, { ...waiting, ...writing }, proc), ['primary']);
      }
    }));

  it('are none if a thread waits for something else that the domain has', () =>
    withProcess(
      { threads: { '9': { state: 'D', call: '0 0xb' } }, open: { '11': '/mnt/dead/some.iso' } },
      async (proc) => {
        const disk = diskSeen({ graph: graph.pair, record: { ...inFiles, mirror: onServer('mirror') } });
        assert.deepEqual(await awaitedCopies(disk, { ...waiting, ...writing }, proc), []);
      },
    ));

  it('are the other one when one was yanked: nothing waits for that', async () => {
    const yanked = { primary: false, mirror: true };
    assert.deepEqual(await awaitedCopies(beside, { ...waiting, yanked }), ['primary']);
  });
});
