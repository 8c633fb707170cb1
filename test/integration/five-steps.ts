import assert from 'node:assert/strict';
import { truncate } from 'node:fs/promises';
import type { Image } from '../lab/copies.ts';
import type { DomainDisk, ImageSource } from '../lab/domain-xml.ts';
import type { NbdServer } from '../lab/storage.ts';
import { endWell, goesOn } from './copies-hold.ts';
import { events, sourceOf, waitLiveStatus, waitState, type Scene } from './scene.ts';

type Storage = 'raw file' | 'qcow2 file' | 'raw over NBD' | 'qcow2 over NBD';

/** Which parts the method is tried with. */
export interface FiveSteps {
  bus: DomainDisk['bus'];
  iothread: boolean;
  primary: Storage;
  mirror: Exclude<Storage, 'qcow2 over NBD'>;
  rebuilt: 'raw' | 'qcow2';
  /** How the primary is lost; a file can't be broken, so the domain is moved off it by command. */
  lost: 'it fails' | 'its server dies' | 'planned';
}

/** For a disk of 64 MiB and its tables. */
const roomForQcow2Bytes = 72 << 20;

interface Place {
  source: ImageSource;
  /** As virt-cdp names it. */
  uri: string;
  /** As the oracle reads it. */
  image: Image;
  server: NbdServer | null;
}

/** "virtio with an I/O thread: from raw file onto ...": for the title of a test. */
export function titleOf({ bus, iothread, primary, mirror, rebuilt, lost }: FiveSteps): string {
  const device = `${bus}${iothread ? ' with an I/O thread' : ''}`;
  return `${device}: from ${primary} onto ${mirror} (${lost}), back onto a ${rebuilt} file`;
}

/** Protects a guest's disk, loses the primary, rebuilds it and moves back, while the guest writes. */
export async function goThroughFiveSteps(
  scene: Scene,
  name: string,
  { bus, iothread, primary: from, mirror: to, rebuilt: format, lost }: FiveSteps,
  whenProtected: () => Promise<void> = () => Promise.resolve(),
): Promise<void> {
  const { agent } = scene;
  const dev = bus === 'virtio' ? 'vda' : 'sda';
  const primary = await place(scene, `${name}-primary`, from);
  const mirror = await place(scene, `${name}-mirror`, to);
  // Several requests in flight are what an I/O thread is there for, and what QEMU has stumbled over with one.
  const cmdline = iothread ? 'witness.depth=4' : '';
  const guest = await scene.guest({ name, cmdline, disks: [{ dev, bus, iothread, image: primary.source }] });
  await goesOn(guest);

  // 1 and 2: the mirror is attached, and every write goes to both.
  await agent.mustCdp('protect', name, '--disk', dev, '--mirror', mirror.uri);
  const armed = await waitState(agent, name, 'protected');
  assert.equal(armed.runningOn, 'both');
  await whenProtected();
  assert.equal((await waitLiveStatus(guest, 'protected', dev)).mirror, mirror.uri);
  assert.equal(await sourceOf(guest, 'next start', dev), primary.uri);
  await goesOn(guest, 100);

  // 3: the primary is damaged, and the mirror becomes the main disk, by itself.
  if (lost === 'it fails') primary.server!.failAll();
  if (lost === 'its server dies') await primary.server!.kill();
  if (lost === 'planned') await agent.mustCdp('failover', name);
  const moved = await waitState(agent, name, 'failed-over');
  await goesOn(guest, 100);
  assert.equal(moved.runningOn, 'mirror');
  assert.equal(moved.primary.current, false);
  assert.equal((await waitLiveStatus(guest, 'failed-over', dev)).runningOn, 'mirror');
  assert.equal(await sourceOf(guest, 'next start', dev), mirror.uri);

  // 4: a new disk is made, and the mirror's content restored onto it, while new writes go to both.
  const path = scene.lab.path(`${name}-new.${format}`);
  await agent.mustCdp('rebuild', name, '--to', path);

  // 5: the completion signal; the new disk is the main disk, the mirror the mirror.
  const back = await waitState(agent, name, 'protected');
  assert.deepEqual([back.runningOn, back.primary.source, back.mirror.source], ['both', path, mirror.uri]);
  await waitLiveStatus(guest, 'protected', dev);
  assert.equal(await sourceOf(guest, 'next start', dev), path);
  assert.equal(await sourceOf(guest, 'live', dev), path);
  assert.equal((await events(agent, name, 'rebuild-finished')).length, 1);
  await goesOn(guest, 100);

  assert.equal(guest.witness.boots, 1);
  await endWell(guest, [{ filename: path, format }, mirror.image], dev);
}

async function place(scene: Scene, name: string, storage: Storage): Promise<Place> {
  const format = storage.startsWith('raw') ? 'raw' : 'qcow2';
  if (storage.endsWith('file')) {
    const source = await scene.lab.image(`${name}.${format}`, format);
    return { source, uri: source.file, image: { filename: source.file, format }, server: null };
  }
  const { file } = await scene.lab.image(`${name}.${format}`, format);
  // An export does not grow, so a qcow2 image gets its room beforehand.
  if (format === 'qcow2') await truncate(file, roomForQcow2Bytes);
  const server = await scene.lab.nbd({ name, file });
  return {
    source: { format, nbd: server.address },
    uri: server.uri,
    image: { filename: server.file, format },
    server,
  };
}
