import { wouldBeInClear } from '../../domain/encryption.ts';
import type { Image } from '../../domain/image.ts';
import { CdpError, RefusedError } from '../../errors.ts';
import { imageName, waitsWithoutEnd } from '../../storage/image.ts';
import { requireMirrorSize } from '../../storage/mirror-size.ts';
import type { ImageOpener } from '../../storage/opener.ts';
import { createImage, measureImage, resolveImage } from '../../storage/tools.ts';
import type { Host } from '../host.ts';
import { refuseImageInUse, type DiskOf } from '../image-users.ts';
import { requireRelays } from '../relays/relays.ts';

/** Looking at a whole image may take longer than a probe. */
const measureDeadlineMs = 30_000;

export interface MirrorTerms {
  create: boolean;
  mayOverwrite: boolean;
  /** Also where the disk is encrypted. */
  mayBeClear: boolean;
  /** The UUID of a domain that is no more, whose mirror it was. */
  heirOf: string | null;
}

/**
 * Looks at the mirror for a disk from all sides, and creates it if that is asked for; then `take` declares it, before anybody else
 * can. Storage that is slow to show whether it is empty keeps nobody else waiting. `warnings`: what is no reason to refuse it, but must be
 * known, a sentence each.
 * @throws CdpError, RefusedError or UsageError, which say why it can't be the mirror.
 */
export async function takeMirror<T>(
  host: Host,
  disk: DiskOf & { primary: Image },
  wanted: Image,
  { create, mayOverwrite, mayBeClear, heirOf }: MirrorTerms,
  take: (mirror: Image, warnings: string[]) => Promise<T>,
): Promise<T> {
  if (!mayBeClear) refuseClear(disk.primary, wanted);
  const deadline = { deadlineMs: measureDeadlineMs, opener: host.opener };
  const [mirror, primary] = await Promise.all([resolveImage(wanted, deadline), resolveImage(disk.primary, deadline)]);
  const refuseTaken = (): Promise<void> => refuseImageInUse(host, disk, mirror, primary, heirOf);
  await refuseTaken();
  if (waitsWithoutEnd(mirror)) await requireRelays();
  const { virtualSizeBytes } = await measureImage(primary, deadline);
  const mirrorBytes = create
    ? virtualSizeBytes
    : await checkMirror(mirror, virtualSizeBytes, mayOverwrite, host.opener);
  const warnings = mirrorBytes > virtualSizeBytes ? [largerText(mirror, mirrorBytes, virtualSizeBytes)] : [];
  return host.claiming(async () => {
    await refuseTaken();
    if (create) await createImage(mirror, virtualSizeBytes, deadline);
    return take(mirror, warnings);
  });
}

function largerText(mirror: Image, mirrorBytes: number, diskBytes: number): string {
  return (
    `the mirror '${imageName(mirror)}' is larger than the disk: a start from it would show the guest ${mirrorBytes} bytes ` +
    `instead of ${diskBytes}, and the old primary would be too small to go back to`
  );
}

/** @throws RefusedError `mirror-not-encrypted`. */
export function refuseClear(primary: Image, mirror: Image): void {
  if (!wouldBeInClear(primary, mirror)) return;
  throw new RefusedError({
    code: 'mirror-not-encrypted',
    message: `the disk is encrypted, and the mirror '${imageName(mirror)}' would hold it in clear`,
    hint: "give the mirror by --mirror-xml, with an <encryption format='luks'> and its <secret>; or add --unencrypted-mirror",
  });
}

/** The mirror's size in bytes. @throws CdpError when it can't hold the disk, RefusedError when it holds data. */
async function checkMirror(
  mirror: Image,
  sizeBytes: number,
  mayOverwrite: boolean,
  opener: ImageOpener,
): Promise<number> {
  const name = imageName(mirror);
  const measured = await measureImage(mirror, { deadlineMs: measureDeadlineMs, opener });
  requireMirrorSize(mirror, measured.virtualSizeBytes, sizeBytes);
  if (measured.backing) {
    throw new CdpError({
      code: 'mirror-incomplete',
      message: `'${name}' has a backing or data file; a mirror stands alone`,
      hint: 'name an image of its own',
    });
  }
  if (measured.holdsData && !mayOverwrite) {
    throw new RefusedError({
      code: 'mirror-holds-data',
      message: `'${name}' holds data, which the initial sync would overwrite`,
      hint: 'make sure that nobody needs it, then add --overwrite-mirror',
    });
  }
  return measured.virtualSizeBytes;
}
