import assert from 'node:assert/strict';
import { parseDomain, type DomainDisk } from '../../src/domain/domain.ts';
import { pauseEstimateMs } from '../../src/protection/requests/save-restore.ts';
import { wayToStopPolicy } from '../../src/protection/stop-policy.ts';

function diskWith(driver: string): DomainDisk | undefined {
  const disk = `<disk type='file'>${driver}<source file='/a'/><target dev='vda' bus='virtio'/></disk>`;
  return parseDomain(`<domain><name>web1</name><devices>${disk}</devices></domain>`).disks[0];
}

describe('a disk without the stop policy', () => {
  const command = 'virt-cdp protect web1 --disk vda --stop-policy-by save-restore';

  it('that has it at the next start gets it by a reboot, or by the command', () => {
    const way = wayToStopPolicy('web1', 'vda', diskWith("<driver name='qemu' error_policy='stop'/>"));
    assert.ok(way.includes('virsh shutdown web1, then virsh start web1'), way);
    assert.ok(way.endsWith(command), way);
  });

  it('that lacks it at the next start too gets it by the command alone', () => {
    const way = wayToStopPolicy('web1', 'vda', diskWith(''));
    assert.ok(way.includes(command), way);
    assert.doesNotMatch(way, /virsh/);
  });

  it('of a transient domain needs a definition first', () => {
    const way = wayToStopPolicy('web1', 'vda', undefined);
    assert.match(way, /transient.*virsh define web1\.xml, then virt-cdp protect/);
  });

  it('costs its guest a pause that grows with the memory in use', () => {
    const mebibyte = 2 ** 20;
    assert.equal(pauseEstimateMs(0, mebibyte), 3_000);
    assert.equal(pauseEstimateMs(1000 * mebibyte, 200 * mebibyte), 13_000);
  });
});
