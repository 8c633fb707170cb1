import assert from 'node:assert/strict';
import { CdpError } from '../../src/errors.ts';
import { withDisk } from '../../src/protection/planner/plan.ts';
import type { Side } from '../../src/protection/model.ts';
import { sinceStart, type DiskRecord } from '../../src/protection/record.ts';
import { bootSide, onlyCurrent, refuseOtherImage } from '../../src/protection/starts/boot-side.ts';
import { answerHook } from '../../src/protection/starts/hook-answer.ts';
import { imageName, sameStorage } from '../../src/storage/image.ts';
import type { SimulatedDomain } from './simulated-domain.ts';

/** What became of a start: why it was refused, or null if the domain runs. */
type Refusal = string | null;

/** `virsh start`; and if the hook refuses it, what its message says. Answers whether the domain runs. */
export function start(domain: SimulatedDomain): boolean {
  const refusal = virshStart(domain);
  if (refusal === null) return true;
  if (domain.memory !== null && /virt-cdp start web1/.test(refusal)) cdpStart(domain);
  return domain.qemu !== null;
}

/** `virsh start`, or libvirt's autostart: the hook asks the agent, or with the agent down the records, and marks the start. */
export function virshStart(domain: SimulatedDomain): Refusal {
  const agentIsUp = domain.memory !== null;
  const record = agentIsUp ? domain.record : sinceStart(domain.kept.record, domain.kept.start);
  const { refuse } = answerHook([record], 'prepare', domainXml(domain), agentIsUp);
  if (refuse !== null) return refuse.message;
  domain.kept.start = domain.now();
  return domain.boot() ? null : 'an image can not be opened';
}

/** `virt-cdp start`, as src/protection/requests/start.ts does it. */
export function cdpStart(domain: SimulatedDomain): Refusal {
  const { disks, name } = domain.record;
  const answersOf = ({ primary, mirror }: DiskRecord): Record<Side, boolean> => ({
    primary: !domain.copyOf(primary.image).failing,
    mirror: !domain.copyOf(mirror.image).failing,
  });
  try {
    const chosen = disks.map((disk) => bootSide(disk, answersOf(disk), false));
    disks.forEach((disk, n) =>
      refuseOtherImage(name, disk, chosen[n] ?? 'primary', domain.persistent.get(disk.dev) ?? null),
    );
    disks.forEach((disk, n) => startFrom(domain, reached(disk, answersOf(disk)), chosen[n] ?? 'primary'));
  } catch (error) {
    if (error instanceof CdpError) return error.message;
    throw error;
  }
  const refusal = virshStart(domain);
  assert.ok(
    refusal === null || /last seen out of reach/.test(refusal),
    `virt-cdp start is refused by our own hook: ${refusal ?? ''}`,
  );
  return refusal;
}

function reached(disk: DiskRecord, answers: Record<Side, boolean>): DiskRecord {
  const { primary, mirror } = disk;
  return {
    ...disk,
    primary: { ...primary, reachable: answers.primary },
    mirror: { ...mirror, reachable: answers.mirror },
  };
}

function startFrom(domain: SimulatedDomain, disk: DiskRecord, side: Side): void {
  const { image } = disk[side];
  const defined = domain.persistent.get(disk.dev);
  domain.save(withDisk(domain.record, onlyCurrent(disk, side)));
  if (defined === undefined || !sameStorage(defined, image)) domain.define(disk.dev, image);
}

function domainXml({ record, persistent }: SimulatedDomain): string {
  const disks = [...persistent].map(
    ([dev, image]) =>
      `<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='${imageName(image)}'/><target dev='${dev}' bus='virtio'/></disk>`,
  );
  return `<domain type='kvm'><name>web1</name><uuid>${record.uuid}</uuid><devices>${disks.join('')}</devices></domain>`;
}
