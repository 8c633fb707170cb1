import type { Image } from '../domain/image.ts';
import { CdpError, UsageError } from '../errors.ts';
import { imageName, sameStorage } from '../storage/image.ts';
import { resolveImage } from '../storage/tools.ts';
import type { LibvirtSession } from '../libvirt/session.ts';
import type { Definitions } from './definitions/definitions.ts';
import type { Protector } from './protector.ts';

const resolveDeadlineMs = 30_000;

/** Whoever knows all domains of this host. */
export interface Domains {
  readonly session: LibvirtSession;
  readonly definitions: Definitions;
  protectors(): Protector[];
}

/** A disk, by its domain's UUID and its target. */
export interface DiskOf {
  uuid: string;
  dev: string;
}

interface ImageUse extends DiskOf {
  image: Image;
  /** As a sentence goes on: `the mirror of disk vda`. */
  what: string;
  domain: string;
  /** libvirt knows the domain no more. */
  gone: boolean;
}

/**
 * An image that any disk of any domain uses, or that is another one's copy, must not be written to. What the domain `heirOf`, a UUID,
 * has left behind does not count.
 */
export async function refuseImageInUse(
  host: Domains,
  disk: DiskOf,
  image: Image,
  primary: Image,
  heirOf: string | null = null,
): Promise<void> {
  const name = imageName(image);
  if (sameStorage(image, primary)) {
    throw new UsageError({
      code: 'image-is-primary',
      message: `'${name}' is the disk ${disk.dev} itself`,
      hint: 'name storage outside this host',
    });
  }
  const user = await userOf(host, image, ({ uuid }) => uuid !== heirOf);
  if (user === null) return;
  throw new CdpError({
    code: 'image-in-use',
    message: `'${name}' is in use: it is ${user.what} of ${user.domain}${user.uuid === disk.uuid ? ' itself' : ''}`,
    hint: user.gone
      ? `libvirt knows ${user.domain} no more; virt-cdp unprotect ${user.uuid} makes virt-cdp forget it too`
      : 'name an image that nothing else uses',
  });
}

/** Why a disk can't have a declared mirror, as a sentence; null if it can. The disk's own record does not count. */
export async function whyContested(host: Domains, disk: DiskOf, mirror: Image, primary: Image): Promise<string | null> {
  const name = imageName(mirror);
  const [image, own] = await Promise.all([followLinks(mirror), followLinks(primary)]);
  if (sameStorage(image, own))
    return `the declared mirror '${name}' is the disk itself: declare another with virsh edit`;
  const user = await userOf(host, image, ({ uuid, dev, gone }) => gone || uuid !== disk.uuid || dev !== disk.dev);
  if (user === null) return null;
  const way = user.gone
    ? `libvirt knows that domain no more: virt-cdp unprotect ${user.uuid} sets it free`
    : 'declare another with virsh edit';
  return `the declared mirror '${name}' is ${user.what} of ${user.domain} already; ${way}`;
}

async function userOf(host: Domains, image: Image, counts: (use: ImageUse) => boolean): Promise<ImageUse | null> {
  return (await imageUsers(host)).find((use) => counts(use) && sameStorage(use.image, image)) ?? null;
}

async function imageUsers(host: Domains): Promise<ImageUse[]> {
  const users = host.protectors().flatMap(({ record: { uuid, name, disks }, gone }) =>
    disks.flatMap(({ dev, primary, mirror, contested }): ImageUse[] => {
      const disk = { uuid, dev, domain: name, gone };
      return [
        { ...disk, image: primary.image, what: `the primary of disk ${dev}` },
        ...(contested === null ? [{ ...disk, image: mirror.image, what: `the mirror of disk ${dev}` }] : []),
      ];
    }),
  );
  for (const { uuid, name } of await host.session.client.listDomains({ all: true })) {
    const definition = await host.definitions.read(uuid);
    for (const { dev, image } of definition?.domain.disks ?? []) {
      if (image === null) continue;
      users.push({ uuid, dev, domain: name, gone: false, image: await followLinks(image), what: `disk ${dev}` });
    }
  }
  return users;
}

function followLinks(image: Image): Promise<Image> {
  return resolveImage(image, { deadlineMs: resolveDeadlineMs });
}
