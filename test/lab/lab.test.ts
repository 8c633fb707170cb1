import assert from 'node:assert/strict';
import { compareCopies, outOfOrder } from './copies.ts';
import { Lab } from './lab.ts';
import { must } from './run.ts';

describe('the laboratory', function () {
  this.timeout(120_000);
  let lab: Lab;

  before(async () => {
    lab = await Lab.start();
  });

  after(async () => {
    await lab.close();
  });

  it('keeps account of what a guest was promised, through resets and a clean shutdown', async () => {
    const image = await lab.image('web1.raw');
    const web1 = await lab.domain({ name: 'web1', disks: [{ dev: 'vda', bus: 'virtio', image }] });
    await web1.witness.waitForAcks(50, 30_000);
    await web1.reset();
    await web1.witness.waitForAcks(50, 30_000);
    await web1.shutdown();

    assert.equal(web1.witness.stopped, true);
    assert.deepEqual(web1.witness.errors, []);
    const report = await web1.witness.checkCopy(image.file, 'vda');
    assert.deepEqual(report.missing, []);
    assert.ok(report.acknowledged >= 100);
  });

  it('finds the acknowledged write that a damaged copy does not hold', async () => {
    const image = await lab.image('web2.raw');
    const web2 = await lab.domain({ name: 'web2', disks: [{ dev: 'vda', bus: 'virtio', image }] });
    let lastBlock = 0;
    web2.witness.onAck((ack) => (lastBlock = ack.block));
    await web2.witness.waitForAcks(10, 30_000);
    await web2.shutdown();
    const before = lab.path('web2-before.raw');
    await must('cp', image.file, before);
    await must('dd', 'if=/dev/zero', `of=${image.file}`, 'bs=4096', `seek=${lastBlock}`, 'count=1', 'conv=notrunc');

    const { missing } = await web2.witness.checkCopy(image.file, 'vda');
    assert.deepEqual(
      missing.map(({ block, found }) => ({ block, found })),
      [{ block: lastBlock, found: 'empty' }],
    );
    assert.equal((await compareCopies(before, image.file)).identical, false);
  });

  it('has guests with several disks, SCSI, qcow2, I/O threads and parallel writers, read while they run', async () => {
    const first = await lab.image('db1-a.qcow2', 'qcow2');
    const second = await lab.image('db1-b.raw');
    const db1 = await lab.domain({
      name: 'db1',
      cmdline: 'witness.depth=4 witness.rate=200 witness.blocks=1000',
      disks: [
        { dev: 'sda', bus: 'scsi', image: first, iothread: true },
        { dev: 'vda', bus: 'virtio', image: second, iothread: true },
      ],
    });
    await db1.witness.waitForAcks(50, 30_000, 'sda');
    await db1.witness.waitForAcks(50, 30_000, 'vda');

    const running = await db1.witness.checkCopy({ filename: second.file, format: 'raw' }, 'vda');
    assert.deepEqual(running.missing, []);
    await db1.shutdown();
    const stopped = await db1.witness.checkCopy(first.file, 'sda');
    assert.deepEqual(stopped.missing, []);
    assert.deepEqual(db1.witness.errors, []);
  });

  it('tells whether copies of two disks are as of one moment', async () => {
    const first = await lab.image('log.raw');
    const second = await lab.image('data.raw');
    const never = await lab.image('never.raw');
    const db2 = await lab.domain({
      name: 'db2',
      cmdline: 'witness.ordered=1',
      disks: [
        { dev: 'vda', bus: 'virtio', image: first },
        { dev: 'vdb', bus: 'virtio', image: second },
      ],
    });
    await db2.witness.waitForAcks(20, 30_000, 'vdb');
    await db2.destroy();

    const { boots } = db2.witness.promised('vda');
    assert.deepEqual(await outOfOrder(first.file, second.file, boots), []);
    assert.notDeepEqual(await outOfOrder(never.file, second.file, boots), []);
  });

  it('breaks storage: an I/O error pauses the guest, which goes on when it is healed', async () => {
    const san = await lab.nbd({ name: 'san' });
    const web3 = await lab.domain({
      name: 'web3',
      disks: [{ dev: 'vda', bus: 'virtio', image: { format: 'raw', nbd: san.address } }],
    });
    await web3.witness.waitForAcks(20, 30_000);

    san.failAll();
    await web3.waitState('paused (I/O error)', 10_000);
    san.heal();
    await web3.resume();
    await web3.witness.waitForAcks(20, 30_000);

    await lab.libvirtd.restart('SIGKILL');
    assert.match(await web3.state(), /^running/);
    await web3.witness.waitForAcks(20, 30_000);
    assert.deepEqual(web3.witness.errors, []);
    const report = await web3.witness.checkCopy(san.uri, 'vda');
    assert.deepEqual(report.missing, []);
  });
});
