import type { Image } from '../domain/image.ts';
import { CdpError } from '../errors.ts';
import { imageName } from './image.ts';

/**
 * A raw mirror may be larger than the disk, since QEMU can be told to use a part of it; a qcow2 mirror is exactly as large.
 * @throws CdpError `mirror-too-small`, `mirror-size-differs`.
 */
export function requireMirrorSize(mirror: Image, mirrorBytes: number, diskBytes: number): void {
  const name = imageName(mirror);
  if (mirrorBytes < diskBytes) {
    throw new CdpError({
      code: 'mirror-too-small',
      message: `the mirror '${name}' is too small: it has ${mirrorBytes} bytes, the disk ${diskBytes}`,
      hint: `make it at least ${diskBytes} bytes`,
    });
  }
  if (mirror.format === 'qcow2' && mirrorBytes !== diskBytes) {
    throw new CdpError({
      code: 'mirror-size-differs',
      message: `the mirror '${name}' is a qcow2 image of ${mirrorBytes} bytes, the disk has ${diskBytes}: they must be equal`,
      hint: 'qemu-img resize it, or leave it to --create',
    });
  }
}
