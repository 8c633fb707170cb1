import { goThroughFiveSteps, titleOf, type FiveSteps } from './five-steps.ts';
import { setScene } from './scene.ts';

/** Devices x primary, devices x mirror and primary x mirror, each pair about once. */
const cases: FiveSteps[] = [
  { bus: 'virtio', iothread: false, primary: 'raw over NBD', mirror: 'raw file', rebuilt: 'qcow2', lost: 'it fails' },
  {
    bus: 'virtio',
    iothread: true,
    primary: 'qcow2 over NBD',
    mirror: 'qcow2 file',
    rebuilt: 'raw',
    lost: 'its server dies',
  },
  {
    bus: 'scsi',
    iothread: false,
    primary: 'raw over NBD',
    mirror: 'qcow2 file',
    rebuilt: 'raw',
    lost: 'its server dies',
  },
  { bus: 'virtio', iothread: true, primary: 'raw file', mirror: 'raw over NBD', rebuilt: 'qcow2', lost: 'planned' },
  { bus: 'scsi', iothread: false, primary: 'qcow2 file', mirror: 'raw over NBD', rebuilt: 'qcow2', lost: 'planned' },
  {
    bus: 'virtio',
    iothread: false,
    primary: 'qcow2 over NBD',
    mirror: 'raw over NBD',
    rebuilt: 'raw',
    lost: 'it fails',
  },
];

describe('the five steps of the method', function () {
  this.timeout(150_000);
  const scene = setScene();

  for (const [index, one] of cases.entries()) {
    it(titleOf(one), () => goThroughFiveSteps(scene, `web${index}`, one));
  }
});
