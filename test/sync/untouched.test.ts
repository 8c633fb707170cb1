import assert from 'node:assert/strict';
import { requireNoWrites } from '../../src/sync/untouched.ts';
import { FakeQemu } from '../qmp/fake-qemu.ts';

const idle = {
  wr_operations: 0,
  flush_operations: 0,
  unmap_operations: 0,
  wr_highest_offset: 0,
  failed_wr_operations: 0,
  failed_flush_operations: 0,
};

function asked({
  device = {},
  node = {},
}: {
  device?: Record<string, number>;
  node?: Record<string, number>;
}): Promise<void> {
  const devices = [{ qdev: 'disk0', stats: { ...idle, ...device } }];
  const nodes = [{ 'node-name': 'libvirt-1-format', stats: { ...idle, ...node } }];
  const qemu = new FakeQemu({ 'query-blockstats': (args) => (args['query-nodes'] === true ? nodes : devices) });
  return requireNoWrites(qemu.monitor, 'disk0', 'libvirt-1-format');
}

describe('requireNoWrites', () => {
  it('is content with a disk that was only read', () => asked({ device: { rd_operations: 7 } }));

  for (const [what, seen] of [
    ['a write', { device: { wr_operations: 1 } }],
    ['a flush', { device: { flush_operations: 1 } }],
    ['a discard', { device: { unmap_operations: 1 } }],
    ['a failed write', { device: { failed_wr_operations: 1 } }],
    ['a write that only the node shows', { node: { wr_highest_offset: 512 } }],
  ] as const) {
    it(`is not content after ${what}`, () => assert.rejects(asked(seen), /has written already/));
  }

  it('is not content with what it can not know', async () => {
    const qemu = new FakeQemu({ 'query-blockstats': () => [] });
    await assert.rejects(requireNoWrites(qemu.monitor, 'disk0', 'libvirt-1-format'), /no statistics/);
  });
});
