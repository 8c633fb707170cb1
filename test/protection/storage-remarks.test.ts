import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import winston from 'winston';
import type { Protector } from '../../src/protection/protector.ts';
import { StorageRemarks } from '../../src/protection/storage-remarks.ts';
import { parseImageUri } from '../../src/storage/image.ts';
import { waitFor } from '../lab/wait.ts';
import { withoutSecrets } from '../storage/images.ts';

/** Of an NBD server: its greeting, then an export of 4096 bytes without NBD_FLAG_SEND_FLUSH. */
const greeting = Buffer.from('4e42444d4147494349484156454f50540003', 'hex');
const flushlessExport = Buffer.from('00000000000010000001', 'hex');

describe("what is said of the storage of a disk's copies", () => {
  let folder: string;

  before(async () => (folder = await mkdtemp(join(tmpdir(), 'virt-cdp-remarks-'))));
  after(() => rm(folder, { recursive: true }));

  it('is looked at again when the state is another, if it could not be found out before, and told once', async () => {
    const socket = join(folder, 'nbd.sock');
    const disk = {
      dev: 'vda',
      state: 'exposed',
      primary: { image: parseImageUri(join(import.meta.dirname, 'primary.raw')) },
      mirror: { image: parseImageUri(`nbd+unix:///?socket=${socket}`) },
    };
    const memory: { storageRemark?: string } = {};
    const told: unknown[] = [];
    let asked = 0;
    const protector = {
      live: { instance: 'one' },
      record: { name: 'web1', disks: [disk] },
      memoryOf: () => memory,
      note: (...event: unknown[]) => told.push(event),
    } as unknown as Protector;
    const remarks = new StorageRemarks(
      () => {
        asked++;
        return { deadlineMs: 5_000, opener: withoutSecrets };
      },
      winston.createLogger({ silent: true }),
    );

    remarks.consider(protector);
    await waitFor('the first look', () => Promise.resolve('storageRemark' in memory), 10_000);
    remarks.consider(protector);
    assert.deepEqual([asked, memory.storageRemark, told], [1, undefined, []]);

    const server = createServer((peer) => {
      peer.on('error', () => undefined).once('data', () => peer.end(flushlessExport));
      peer.write(greeting);
    });
    await once(server.listen(socket), 'listening');
    try {
      disk.state = 'protected';
      remarks.consider(protector);
      await waitFor('the second look', () => Promise.resolve(memory.storageRemark !== undefined), 10_000);
      assert.match(memory.storageRemark ?? '', /offers no flush/);
      disk.state = 'held';
      remarks.consider(protector);
      assert.deepEqual([asked, told], [2, [['at-risk', 'vda', { what: memory.storageRemark }]]]);
    } finally {
      server.close();
    }
  });
});
