/** A Verification, with instants of a real server that qemu-img reads, of which each test says what they are. */
import assert from 'node:assert/strict';
import { execFile, spawn, type ChildProcess } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import type { Instant } from '../../src/graph/instant.ts';
import type { DiskVerdict } from '../../src/protection/model.ts';
import { Verification } from '../../src/protection/verification.ts';
import { comparedBlockBytes as block, compareExports } from '../../src/sync/compare.ts';
import { waitFor } from '../lab/wait.ts';

const run = promisify(execFile);

const blocks = 16;
const sizeBytes = blocks * block;
const bitmap = 'written';

/** Numbers of blocks. */
interface InstantIs {
  differ: number[];
  /** Since the instant before. */
  written?: number[];
}

describe('a verify', function () {
  this.timeout(30_000);
  let folder: string;
  let servers: ChildProcess[];

  before(async function () {
    for (const program of ['qemu-storage-daemon', 'qemu-img', 'qemu-io']) {
      await run(program, ['--version']).catch(() => this.skip());
    }
  });

  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'verification-'));
    servers = [];
  });

  afterEach(() => {
    for (const server of servers) server.kill('SIGKILL');
    rmSync(folder, { recursive: true, force: true });
  });

  async function serve({ differ, written = [] }: InstantIs): Promise<Instant> {
    const number = servers.length;
    const image = (side: string): string => join(folder, `${number}.${side}`);
    const write = async (side: string, pattern: number, which: number[]): Promise<void> => {
      const commands = which.flatMap((at) => ['-c', `write -P ${pattern} ${at * block + 4096} 4096`]);
      if (commands.length > 0) await run('qemu-io', ['-f', 'qcow2', ...commands, image(side)]);
    };
    for (const side of ['primary', 'mirror'])
      await run('qemu-img', ['create', '-q', '-f', 'qcow2', image(side), String(sizeBytes)]);
    await run('qemu-img', ['bitmap', '--add', '-g', String(block), image('primary'), bitmap]);
    for (const side of ['primary', 'mirror']) await write(side, 1, written);
    await run('qemu-img', ['bitmap', '--disable', image('primary'), bitmap]);
    await write('mirror', 2, differ);

    const socket = join(folder, `${number}.sock`);
    const export_ = (side: string): string[] => [
      `--blockdev=driver=qcow2,node-name=${side},file.driver=file,file.filename=${image(side)}`,
      `--export=type=nbd,id=${side},node-name=${side},name=${side}${side === 'primary' ? `,bitmaps.0=${bitmap}` : ''}`,
    ];
    const server = `--nbd-server=addr.type=unix,addr.path=${socket}`;
    // Written when all is set up.
    const pidFile = join(folder, `${number}.pid`);
    servers.push(
      spawn('qemu-storage-daemon', [server, ...export_('primary'), ...export_('mirror'), `--pidfile=${pidFile}`]),
    );
    await waitFor('the server', () => existsSync(pidFile), 10_000);
    return { socket, exports: { primary: 'primary', mirror: 'mirror' }, written: number === 0 ? null : bitmap };
  }

  /** What a verify says of these instants; after the last one it finds that one again. */
  async function verdictOf(...instants: InstantIs[]): Promise<DiskVerdict & { instants: number }> {
    const verification: Verification = new Verification({
      dev: 'vda',
      sizeBytes,
      maxBytesPerS: 0,
      folder,
      looked: async () => {
        if (verification.view.is !== 'wanted') return;
        verification.taken(await serve(instants[verification.instants] ?? instants.at(-1)!));
      },
    });
    return { ...(await verification.run()), instants: verification.instants };
  }

  it('accuses a block that differs at one instant and at the next', async () => {
    const { differences, differingBytes, complete, instants } = await verdictOf(
      { differ: [3, 4, 9] },
      { differ: [3, 9] },
    );
    assert.deepEqual(differences, [
      { offset: 3 * block, length: block },
      { offset: 9 * block, length: block },
    ]);
    assert.deepEqual([differingBytes, complete, instants], [2 * block, true, 2]);
  });

  it('accuses nothing that differs at one instant and not at the next', async () => {
    const { differences, unsettledBytes, comparedBytes, instants } = await verdictOf(
      { differ: [0, 15] },
      { differ: [] },
    );
    assert.deepEqual([differences, unsettledBytes, comparedBytes, instants], [[], 0, sizeBytes, 2]);
  });

  it('does not accuse a block that was written to in between, until it differs and was not', async () => {
    const differs = { differ: [5], written: [5] };
    const settled = await verdictOf(differs, differs, { differ: [] });
    assert.deepEqual([settled.differences, settled.unsettledBytes, settled.instants], [[], 0, 3]);
    const accused = await verdictOf(differs, differs, { differ: [5], written: [6] });
    assert.deepEqual([accused.differingBytes, accused.unsettledBytes, accused.instants], [block, 0, 3]);
  });

  it('gives up judging a block that is written to all the time, and says so', async () => {
    const verdict = await verdictOf({ differ: [2, 7], written: [7] });
    assert.deepEqual(verdict.differences, [{ offset: 2 * block, length: block }]);
    assert.deepEqual([verdict.unsettledBytes, verdict.instants], [block, 8]);
  });

  it('does not go on where too much differs, and says so', async () => {
    const instant = await serve({ differ: [1, 3, 5] });
    const found = await compareExports(instant, [{ offset: 0, length: sizeBytes }], {
      maxBytesPerS: 0,
      maxBlocks: 2,
      progress: () => undefined,
      signal: new AbortController().signal,
    });
    assert.deepEqual(found, {
      differing: [
        { offset: block, length: block },
        { offset: 3 * block, length: block },
      ],
      complete: false,
    });
  });
});
