import assert from 'node:assert/strict';
import { diskNames } from '../../src/graph/names.ts';
import { NodeGraph } from '../../src/graph/node-graph.ts';
import { buildPark, resume, setRoot } from '../../src/graph/surgery.ts';
import { waitFor } from '../lab/wait.ts';
import { areInstalled, RealQemu } from '../qmp/real-qemu.ts';

const sizeBytes = 1 << 20;
const { park } = diskNames('vda');
const qdev = '/machine/peripheral/disk/virtio-backend';

/** A machine whose firmware looks for something to boot on its only disk: that is a driver at work, and takes no guest. */
const machine = [
  ...['-machine', 'pc,accel=tcg', '-m', '32', '-object', 'iothread,id=thread'],
  ...['-blockdev', `driver=null-co,node-name=root,size=${sizeBytes},read-zeroes=on`],
  ...['-device', 'virtio-blk-pci,id=disk,drive=root,iothread=thread'],
];

describe('the root of a disk with an I/O thread in a real QEMU', function () {
  this.timeout(60_000);
  let qemu: RealQemu;

  before(async function () {
    if (!(await areInstalled('qemu-system-x86_64'))) this.skip();
    qemu = await RealQemu.start(machine);
    await buildPark(qemu.monitor, 'vda', sizeBytes);
  });

  after(() => qemu.end());

  const rootNow = async (): Promise<string | undefined> =>
    new NodeGraph(await qemu.monitor.execute('x-debug-query-block-graph', {})).rootOf(qdev);

  it('is set although a stranger resumes the domain just before', async () => {
    const { monitor } = qemu;
    await resume(monitor);
    await waitFor(
      'the firmware to read the disk',
      async () => JSON.stringify(await monitor.execute('query-blockstats', {})).match(/"rd_operations":\s*[1-9]/),
      30_000,
    );
    await assert.rejects(
      monitor.execute('qom-set', { path: qdev, property: 'drive', value: park }),
      /iothread|context/i,
    );
    await setRoot(monitor, qdev, 'root', park);
    assert.equal(await rootNow(), park);
    await resume(monitor);
    await setRoot(monitor, qdev, park, 'root');
    assert.equal(await rootNow(), 'root');
    assert.equal((await monitor.execute('query-status', {})).running, false);
  });
});
