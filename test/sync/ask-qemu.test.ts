/** flushNode and readNode on a real QEMU, with a server whose flushes fail when a file says so. */
import assert from 'node:assert/strict';
import { spawn, type ChildProcess } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { diskNames } from '../../src/graph/names.ts';
import { readNode } from '../../src/graph/read.ts';
import { openNodes } from '../../src/graph/surgery.ts';
import type { Monitor } from '../../src/qmp/monitor.ts';
import { flushNode } from '../../src/sync/flush.ts';
import { areInstalled, connected, RealQemu } from '../qmp/real-qemu.ts';

const sizeBytes = 1024 * 1024;

describe('a node of a real QEMU', function () {
  this.timeout(20_000);
  let folder: string;
  let server: ChildProcess;
  let qemu: RealQemu;
  let monitor: Monitor;

  before(async function () {
    if (!(await areInstalled('qemu-system-x86_64', 'nbdkit'))) this.skip();
    folder = mkdtempSync(join(tmpdir(), 'flush-'));
    const broken = join(folder, 'broken');
    const nbd = join(folder, 'nbd');
    const plugin = [
      `get_size=echo ${sizeBytes}`,
      'can_write=exit 0',
      'can_flush=exit 0',
      `pread=[ ! -e ${broken} ] || { echo EIO >&2; exit 1; }; head -c $3 /dev/zero`,
      'pwrite=cat >/dev/null',
      `flush=[ ! -e ${broken} ] || { echo EIO >&2; exit 1; }`,
    ];
    server = spawn('nbdkit', ['-f', '-U', nbd, 'eval', ...plugin], { stdio: 'ignore' });
    qemu = await RealQemu.start();
    monitor = qemu.monitor;
    (await connected(nbd)).destroy();
    await monitor.execute('blockdev-add', { driver: 'null-co', 'node-name': 'nothing', size: sizeBytes });
    await monitor.execute('blockdev-add', {
      driver: 'nbd',
      'node-name': 'mirror',
      server: { type: 'unix', path: nbd },
    });
  });

  after(() => {
    qemu.end();
    server.kill();
    rmSync(folder, { recursive: true });
  });

  it('is flushed when the server flushes, any number of times', async () => {
    await flushNode(monitor, 'flush', 'nothing', 'mirror');
    await flushNode(monitor, 'flush', 'nothing', 'mirror');
  });

  it('succeeds although an agent died in the middle of one, and left its job', async () => {
    await monitor.execute('blockdev-mirror', {
      'job-id': 'flush',
      device: 'nothing',
      target: 'mirror',
      sync: 'none',
      'copy-mode': 'background',
      'filter-node-name': 'flush-filter',
      speed: 0,
    });
    await flushNode(monitor, 'flush', 'nothing', 'mirror');
  });

  it('is possible on nodes of which an agent that died has left one', async () => {
    const nodes = [
      { driver: 'null-co', 'node-name': 'below', size: sizeBytes },
      { driver: 'raw', 'node-name': 'above', file: 'below' },
    ];
    await monitor.execute('blockdev-add', nodes[0]!);
    await openNodes(monitor, nodes);
    await flushNode(monitor, 'flush', 'nothing', 'above');
    await monitor.execute('blockdev-add', { driver: 'raw', 'node-name': 'user', file: 'above' });
    await assert.rejects(openNodes(monitor, nodes), /in use/);
  });

  it('fails when the server does not, and succeeds again when it does', async () => {
    const write = (): Promise<unknown> =>
      monitor.execute('human-monitor-command', { 'command-line': 'qemu-io mirror "write 0 64k"' });
    await write();
    writeFileSync(join(folder, 'broken'), '');
    await assert.rejects(flushNode(monitor, 'flush', 'nothing', 'mirror'), /the flush of mirror failed/);
    rmSync(join(folder, 'broken'));
    await write();
    await flushNode(monitor, 'flush', 'nothing', 'mirror');
  });

  it('reads through a node in use, although an agent died in the middle of that, and fails when the server does', async () => {
    const names = diskNames('vda');
    await monitor.execute('blockdev-add', { driver: 'raw', 'node-name': 'in-use', file: 'mirror' });
    await readNode(monitor, names, 'mirror');
    await openNodes(monitor, [
      { driver: 'raw', 'node-name': names.slice, file: 'mirror', offset: 0, size: 65536, 'read-only': true },
      { driver: 'null-co', 'node-name': names.sink, size: 65536 },
    ]);
    await readNode(monitor, names, 'mirror');
    writeFileSync(join(folder, 'broken'), '');
    await assert.rejects(readNode(monitor, names, 'mirror'), /the read of mirror failed/);
    rmSync(join(folder, 'broken'));
    await readNode(monitor, names, 'mirror');
  });
});
