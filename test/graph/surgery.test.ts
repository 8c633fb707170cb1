import assert from 'node:assert/strict';
import { addBitmap } from '../../src/graph/bitmaps.ts';
import {
  buildLayers,
  buildPark,
  closeNodes,
  markSurgery,
  openNodes,
  setRoot,
  unmarkSurgery,
} from '../../src/graph/surgery.ts';
import { compose } from '../../src/graph/engine.ts';
import { FakeQemu, Refusal, type Answers } from '../qmp/fake-qemu.ts';

const qdev = '/machine/peripheral/virtio-disk0/virtio-backend';

/** One device per entry, on a node each, and loose nodes. */
function devices(roots: Record<string, string>, loose: string[] = []): Answers {
  const nodes = [...new Set([...Object.values(roots), ...loose])].map((name, id) => ({
    id,
    type: 'block-driver',
    name,
  }));
  const backends = Object.keys(roots).map((name, index) => ({ id: 100 + index, type: 'block-backend', name }));
  const edges = Object.entries(roots).map(([name, root]) => ({
    parent: backends.find((backend) => backend.name === name)?.id,
    child: nodes.find((node) => node.name === root)?.id,
    name: 'root',
  }));
  return {
    'x-debug-query-block-graph': () => ({ nodes: [...nodes, ...backends], edges }),
    'query-status': () => ({ running: false, status: 'paused' }),
  };
}

const look = ['query-status', 'x-debug-query-block-graph'];

describe('setRoot', () => {
  it('gives the device another root', async () => {
    const qemu = new FakeQemu(devices({ [qdev]: 'libvirt-1-format' }, ['cdp-vda-park']));
    await setRoot(qemu.monitor, qdev, 'libvirt-1-format', 'cdp-vda-park');
    assert.deepEqual(qemu.sent, [...look, 'qom-set cdp-vda-park']);
  });

  it('stops a domain that somebody resumed, before anything else', async () => {
    const qemu = new FakeQemu({
      ...devices({ [qdev]: 'libvirt-1-format' }),
      'query-status': () => ({ running: true, status: 'running' }),
    });
    await setRoot(qemu.monitor, qdev, 'libvirt-1-format', 'cdp-vda-park');
    assert.deepEqual(qemu.sent, ['query-status', 'stop', 'x-debug-query-block-graph', 'qom-set cdp-vda-park']);
  });

  it('does nothing when the node is the root already: QEMU would abort', async () => {
    const qemu = new FakeQemu(devices({ [qdev]: 'cdp-vda-park' }));
    await setRoot(qemu.monitor, qdev, 'libvirt-1-format', 'cdp-vda-park');
    assert.deepEqual(qemu.sent, look);
  });

  it("refuses another device's node: QEMU would abort", async () => {
    const qemu = new FakeQemu(devices({ [qdev]: 'libvirt-1-format', other: 'cdp-vda-mirror' }));
    await assert.rejects(
      setRoot(qemu.monitor, qdev, 'libvirt-1-format', 'cdp-vda-mirror'),
      /cdp-vda-mirror is already attached to other/,
    );
    assert.deepEqual(qemu.sent, look);
  });

  it('refuses to leave a root that the plan did not see', async () => {
    const qemu = new FakeQemu(devices({ [qdev]: 'libvirt-2-format' }, ['cdp-vda-park']));
    await assert.rejects(
      setRoot(qemu.monitor, qdev, 'libvirt-1-format', 'cdp-vda-park'),
      /on libvirt-2-format and not, as planned, on libvirt-1-format/,
    );
    assert.deepEqual(qemu.sent, look);
  });
});

describe('surgery on the graph', () => {
  const added: Record<string, unknown>[] = [];
  const recorder: Answers = { 'blockdev-add': (args) => void added.push(args) };
  beforeEach(() => added.splice(0));

  it('parks on a node on which every kind of I/O fails, and one write has failed already', async () => {
    const qemu = new FakeQemu(recorder);
    await buildPark(qemu.monitor, 'vda', 4096);
    assert.deepEqual(qemu.sent.slice(-2), [
      'blockdev-add cdp-vda-park',
      'human-monitor-command qemu-io cdp-vda-park "write 0 512"',
    ]);
    const park = added.find((options) => options['driver'] === 'blkdebug');
    assert.deepEqual(park?.['inject-error'], [{ event: 'none', errno: 5 }], 'no iotype');
    assert.equal(park['discard'], 'unmap');
    assert.ok(added.filter(({ driver }) => driver === 'null-co').every(({ size }) => size === 4096));
  });

  it('parks on a park of its own where a former one has left the node below it', async () => {
    const names = new Set(['cdp-vda-park-null']);
    const add = (options: Record<string, unknown>): void => {
      if (typeof options['image'] === 'object') add(options['image'] as Record<string, unknown>);
      const name = String(options['node-name']);
      if (names.has(name)) throw new Refusal(`Duplicate nodes with node-name='${name}'`);
      names.add(name);
    };
    const remove = (args: Record<string, unknown>): void => {
      const name = String(args['node-name']);
      if (!names.delete(name)) throw new Refusal(`Failed to find node with node-name='${name}'`);
    };
    await buildPark(new FakeQemu({ 'blockdev-add': add, 'blockdev-del': remove }).monitor, 'vda', 4096);
    assert.ok(names.has('cdp-vda-park'));
  });

  it('composes a quorum that acknowledges what every copy has', async () => {
    await compose(new FakeQemu(recorder).monitor, 'vda', 'libvirt-1-format', 'quorum');
    assert.deepEqual(added, [
      {
        driver: 'quorum',
        'node-name': 'cdp-vda',
        children: ['libvirt-1-format', 'cdp-vda-mirror'],
        'vote-threshold': 2,
        'read-pattern': 'fifo',
      },
    ]);
  });

  it("lays libvirt's names over the mirror, lowest first", async () => {
    await buildLayers(new FakeQemu(recorder).monitor, 'vda', ['libvirt-1-format', 'libvirt-1-storage']);
    assert.deepEqual(
      added.map((options) => [options['node-name'], options['file']]),
      [
        ['libvirt-1-storage', 'cdp-vda-mirror'],
        ['libvirt-1-format', 'libvirt-1-storage'],
      ],
    );
  });

  it('marks a pause of ours with a node', async () => {
    const qemu = new FakeQemu();
    await markSurgery(qemu.monitor);
    await unmarkSurgery(qemu.monitor);
    assert.deepEqual(qemu.sent, ['blockdev-add cdp-surgery', 'blockdev-del cdp-surgery']);
  });
});

describe('nodes', () => {
  const refuse = (what: string, words: string): Answers => ({
    'blockdev-add': (args) => {
      if (args['node-name'] === what) throw new Refusal(words);
    },
    'blockdev-del': (args) => {
      if (args['node-name'] === what) throw new Refusal(words);
    },
  });
  const nodes = ['storage', 'format', 'top'].map((name) => ({ driver: 'raw', 'node-name': name }));

  it('are opened lowest first', async () => {
    const qemu = new FakeQemu();
    await openNodes(qemu.monitor, nodes);
    assert.deepEqual(qemu.sent, ['blockdev-add storage', 'blockdev-add format', 'blockdev-add top']);
  });

  it('are closed again when one can not be opened, topmost first', async () => {
    const qemu = new FakeQemu(refuse('top', 'Failed to get "write" lock'));
    await assert.rejects(openNodes(qemu.monitor, nodes), /write/);
    assert.deepEqual(qemu.sent.slice(-2), ['blockdev-del format', 'blockdev-del storage']);
  });

  it('may be gone already when they are closed', async () => {
    const qemu = new FakeQemu(refuse('format', "Failed to find node with node-name='format'"));
    await closeNodes(qemu.monitor, ['format', 'storage']);
    assert.deepEqual(qemu.sent, ['blockdev-del format', 'blockdev-del storage']);
  });

  it('that are in use are not left unsaid', async () => {
    await assert.rejects(
      closeNodes(new FakeQemu(refuse('format', 'Node format is in use')).monitor, ['format', 'storage']),
      /in use/,
    );
  });
});

describe('bitmaps', () => {
  it('begin to record before others are merged into them, and all have one granularity', async () => {
    const seen: unknown[] = [];
    const qemu = new FakeQemu({ 'block-dirty-bitmap-add': (args) => void seen.push(args['granularity']) });
    await addBitmap(qemu.monitor, 'libvirt-1-format', 'cdp-track-1', [{ node: 'cdp-vda', name: 'cdp-epoch-1' }]);
    assert.deepEqual(qemu.sent, ['block-dirty-bitmap-add cdp-track-1', 'block-dirty-bitmap-merge']);
    assert.deepEqual(seen, [65536]);
  });
});
