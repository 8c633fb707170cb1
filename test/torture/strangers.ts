import { rmSync } from 'node:fs';
import type { Deeds } from './deeds.ts';
import type { DomainInForce, World } from './world.ts';

/** What an administrator does by virsh who knows nothing of virt-cdp. libvirt or QEMU may refuse any of it. */
const virshTimeoutS = 8;

export const managedSave: Deeds['managedSave'] = async (world, { domain }) => {
  await willBeSaved(world, domain);
  return world.virsh('managedsave', domain);
};

export const saveAndRestore: Deeds['saveAndRestore'] = async (world, { domain }) => {
  await willBeSaved(world, domain);
  const path = world.lab.path(world.fileName(`${domain}-save`));
  const saved = await world.virsh('save', domain, path);
  if (saved !== 'done') return saved;
  const restored = await world.virsh('restore', path);
  rmSync(path, { force: true });
  return restored === 'done' ? 'done' : `saved, but not restored: ${restored}`;
};

export const snapshot: Deeds['snapshot'] = async (world, { domain }) => {
  const one = world.domain(domain);
  const overlays = one.disks.map(({ dev, copies: { primary } }) => {
    const file = world.lab.path(`${world.fileName(`${domain}-${dev}-overlay`)}.qcow2`);
    world.addOverlay(file, primary);
    return { dev, file };
  });
  const specs = overlays.flatMap(({ dev, file }) => ['--diskspec', `${dev},file=${file}`]);
  return world.virsh('snapshot-create-as', domain, '--disk-only', '--no-metadata', '--atomic', ...specs);
};

export const blockCommit: Deeds['blockCommit'] = async (world, { domain, dev }) =>
  world.virsh('blockcommit', domain, dev, '--active', '--pivot', '--wait', '--timeout', String(virshTimeoutS));

export const blockCopy: Deeds['blockCopy'] = async (world, { domain, dev }) => {
  const file = world.lab.path(world.fileName(`${domain}-${dev}-blockcopy`));
  const options = ['--transient-job', '--wait', '--timeout', String(virshTimeoutS), '--finish'];
  return world.virsh('blockcopy', domain, dev, '--dest', file, '--format', 'raw', ...options);
};

export const beginBackup: Deeds['beginBackup'] = async (world, { domain }) => {
  const one = world.domain(domain);
  const name = world.fileName(`${domain}-backup`);
  const disks = one.disks.map(
    ({ dev }) =>
      `<disk name='${dev}' backup='yes' type='file'><scratch file='${world.lab.path(`${name}-${dev}`)}'/></disk>`,
  );
  const xml = `<domainbackup mode='pull'><server transport='unix' socket='${world.lab.path(`${name}.sock`)}'/><disks>${disks.join('')}</disks></domainbackup>`;
  return world.virsh('backup-begin', domain, world.write('backup.xml', xml));
};

export const endBackup: Deeds['endBackup'] = async (world, { domain }) => world.virsh('domjobabort', domain);

export const defineOldXml: Deeds['defineOldXml'] = async (world, { domain }) => {
  try {
    await world.define(world.domain(domain).oldXml);
    return 'done';
  } catch (error) {
    return `refused: ${String(error)}`;
  }
};

/** A disk that is not protected comes and goes. */
export const plugAndUnplug: Deeds['plugAndUnplug'] = async (world, { domain }) => {
  const one: DomainInForce = world.domain(domain);
  const target = one.shape.disks[0]?.bus === 'scsi' ? 'sdy' : 'vdy';
  const { file } = await world.makeCopy(`${domain}-plugged`, 'file', 'raw');
  const plugged = await world.virsh(
    'attach-disk',
    domain,
    file,
    target,
    '--live',
    '--targetbus',
    one.shape.disks[0]?.bus ?? 'virtio',
  );
  if (plugged !== 'done') return plugged;
  return world.virsh('detach-disk', domain, target, '--live');
};

/** A domain that is saved while it is paused is paused when it comes back. */
async function willBeSaved(world: World, name: string): Promise<void> {
  const domain = world.domain(name);
  domain.suspendSeen = false;
  if ((await world.state(name)).startsWith('paused')) domain.suspendAsked = true;
}
