/** flushNode and readNode on a real QEMU, with a server whose flushes fail when a file says so. */
import assert from 'node:assert/strict';
import { execFile, spawn, type ChildProcess } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import { diskNames } from '../../src/graph/names.ts';
import { readNode } from '../../src/graph/read.ts';
import { openNodes } from '../../src/graph/surgery.ts';
import { Monitor, type QmpChannel, type QmpEvent } from '../../src/qmp/monitor.ts';
import { flushNode } from '../../src/sync/flush.ts';

const sizeBytes = 1024 * 1024;

/** QEMU's own socket, one command at a time. */
class QmpSocket implements QmpChannel {
  readonly #socket: Socket;
  readonly #listeners = new Set<(event: QmpEvent) => void>();
  #answer: (line: string) => void = () => undefined;

  constructor(socket: Socket) {
    this.#socket = socket;
    createInterface(socket).on('line', (line) => {
      const message = JSON.parse(line) as { event?: string; data?: QmpEvent['data']; QMP?: unknown };
      if (message.event !== undefined) {
        for (const listener of this.#listeners)
          listener({ event: message.event, timeMs: Date.now(), data: message.data ?? {} });
      } else if (message.QMP === undefined) this.#answer(line);
    });
  }

  send(request: string): Promise<string> {
    return new Promise((resolve) => {
      this.#answer = resolve;
      this.#socket.write(request + '\n');
    });
  }

  onEvent(listener: (event: QmpEvent) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  end(): void {
    this.#socket.destroy();
  }
}

async function connected(path: string): Promise<Socket> {
  for (let tries = 0; ; tries++) {
    try {
      return await new Promise<Socket>((resolve, reject) => {
        const socket = connect(path, () => resolve(socket)).once('error', reject);
      });
    } catch (error) {
      if (tries > 100) throw error;
      await sleep(50);
    }
  }
}

describe('a node of a real QEMU', function () {
  this.timeout(20_000);
  let folder: string;
  let children: ChildProcess[];
  let channel: QmpSocket;

  before(async function () {
    for (const program of ['qemu-system-x86_64', 'nbdkit']) {
      await promisify(execFile)(program, ['--version']).catch(() => this.skip());
    }
    folder = mkdtempSync(join(tmpdir(), 'flush-'));
    const broken = join(folder, 'broken');
    const [nbd, qmp] = [join(folder, 'nbd'), join(folder, 'qmp')];
    const plugin = [
      `get_size=echo ${sizeBytes}`,
      'can_write=exit 0',
      'can_flush=exit 0',
      `pread=[ ! -e ${broken} ] || { echo EIO >&2; exit 1; }; head -c $3 /dev/zero`,
      'pwrite=cat >/dev/null',
      `flush=[ ! -e ${broken} ] || { echo EIO >&2; exit 1; }`,
    ];
    const qemuArguments = [
      '-machine',
      'none',
      '-nodefaults',
      '-display',
      'none',
      '-S',
      '-qmp',
      `unix:${qmp},server=on,wait=off`,
    ];
    children = [
      spawn('nbdkit', ['-f', '-U', nbd, 'eval', ...plugin], { stdio: 'ignore' }),
      spawn('qemu-system-x86_64', qemuArguments, { stdio: 'ignore' }),
    ];
    channel = new QmpSocket(await connected(qmp));
    (await connected(nbd)).destroy();
    await channel.send(JSON.stringify({ execute: 'qmp_capabilities' }));
    const monitor = new Monitor(channel);
    await monitor.execute('blockdev-add', { driver: 'null-co', 'node-name': 'nothing', size: sizeBytes });
    await monitor.execute('blockdev-add', {
      driver: 'nbd',
      'node-name': 'mirror',
      server: { type: 'unix', path: nbd },
    });
  });

  after(() => {
    channel.end();
    for (const child of children) child.kill('SIGKILL');
    rmSync(folder, { recursive: true });
  });

  it('is flushed when the server flushes, any number of times', async () => {
    const monitor = new Monitor(channel);
    await flushNode(monitor, 'flush', 'nothing', 'mirror');
    await flushNode(monitor, 'flush', 'nothing', 'mirror');
  });

  it('succeeds although an agent died in the middle of one, and left its job', async () => {
    const monitor = new Monitor(channel);
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
    const monitor = new Monitor(channel);
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
    const monitor = new Monitor(channel);
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
    const monitor = new Monitor(channel);
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
