import assert from 'node:assert/strict';
import { DomainWatch } from '../../../src/protection/hangs/domain-watch.ts';
import type { HangWatchParts } from '../../../src/protection/hangs/hang-watch.ts';
import type { Protector } from '../../../src/protection/protector.ts';
import type { Image } from '../../../src/domain/image.ts';
import { graph, look, mirrorImage, primaryImage, record, type DiskParts } from '../observations.ts';

/** Which disks' relays are ended when QEMU's monitor has fallen silent, and this storage answers nobody. */
async function ended(silent: Image, disk: DiskParts): Promise<string[]> {
  const disks: string[] = [];
  const observation = look(disk);
  const protector = {
    record: observation.record,
    observation,
    live: {
      silentSince: new Date().toISOString(),
      ref: { name: 'web1' },
      relayPid: () => 7,
      relays: { end: (_: unknown, dev: string) => Promise.resolve(disks.push(dev)) },
    },
  } as unknown as Protector;
  const parts = {
    prober: { ask: (image: Image) => Promise.resolve(image !== silent) },
    patienceMs: () => 5_000,
    log: { info: () => undefined },
    helpless: () => Promise.resolve(),
  } as unknown as HangWatchParts;
  await new DomainWatch(parts, protector).look();
  return disks;
}

const told = { withoutStopPolicy: 'it lacks the stop policy', engine: 'mirror', graph: graph.mirrorJob } as const;

describe('a silent monitor of QEMU', () => {
  it('is freed of a mirror that hangs, also if the record does not call that current', async () => {
    assert.deepEqual(await ended(mirrorImage, {}), ['vda']);
    assert.deepEqual(await ended(mirrorImage, told), ['vda']);
    assert.deepEqual(await ended(mirrorImage, { ...told, record: record.onlyPrimary }), ['vda']);
  });

  it('keeps the only copy, and is freed of nothing that the guest does not wait for', async () => {
    assert.deepEqual(await ended(primaryImage, { ...told, record: record.onlyPrimary }), []);
    assert.deepEqual(await ended(mirrorImage, { record: record.onlyMirror, graph: graph.mirror }), []);
    assert.deepEqual(await ended(mirrorImage, { record: record.onlyPrimary, graph: graph.plain }), []);
  });
});
