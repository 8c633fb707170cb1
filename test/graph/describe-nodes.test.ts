import assert from 'node:assert/strict';
import { describeNodes } from '../../src/graph/describe-nodes.ts';
import type { BlockDevice, BlockGraph, BlockNode } from '../../src/qmp/commands.ts';
import { FakeQemu, Refusal } from '../qmp/fake-qemu.ts';

const image = { 'virtual-size': 1 };
const primary: BlockNode = { 'node-name': 'libvirt-1-storage', drv: 'rbd', file: 'json:{}', image };
const bitmap = { name: 'cdp-epoch-1', count: 0, granularity: 65536, recording: true, busy: false, persistent: false };

function graphOf(...names: string[]): BlockGraph {
  return { nodes: names.map((name, id) => ({ id, type: 'block-driver' as const, name })), edges: [] };
}

describe('describeNodes', () => {
  it('goes by what was seen before while an RBD image can not be read, and by the devices for their own nodes', async () => {
    let reads = true;
    const qemu = new FakeQemu({
      'query-named-block-nodes': () => {
        if (reads) return [primary];
        throw new Refusal('cannot read image start for probe: Connection timed out');
      },
    });
    const { monitor } = qemu;
    const devices: BlockDevice[] = [
      { device: '', inserted: { 'node-name': 'cdp-vda', drv: 'quorum', file: '', image, 'dirty-bitmaps': [bitmap] } },
    ];
    await describeNodes(monitor, graphOf('libvirt-1-storage'), []);
    reads = false;
    const graph = graphOf('libvirt-1-storage', 'cdp-vda', 'cdp-vda-mirror');
    const [first, pair, unseen] = await describeNodes(monitor, graph, devices);
    assert.deepEqual(first, primary);
    assert.deepEqual(pair?.['dirty-bitmaps'], [bitmap]);
    assert.deepEqual([unseen?.['node-name'], unseen?.drv], ['cdp-vda-mirror', '']);

    // QEMU is not held up again by what is known to fail, until another graph may be readable.
    const asked = qemu.sent.length;
    await describeNodes(monitor, graph, devices);
    assert.equal(qemu.sent.length, asked);
    reads = true;
    await describeNodes(monitor, graphOf('cdp-vda-mirror'), devices);
    assert.equal(qemu.sent.length, asked + 1);
  });
});
