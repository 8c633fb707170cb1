import { parseImageUri } from '../../storage/image.ts';
import { requireSpace } from '../../storage/free-space.ts';
import type { ImageOpener } from '../../storage/opener.ts';
import { imageSize } from '../../storage/tools.ts';
import { CdpError } from '../../errors.ts';
import type { Check } from '../check.ts';
import { ok, trouble } from '../finding.ts';
import { disksOf, type DeclaredDisk } from '../host-view.ts';

interface Facts {
  /** Disks that say where a new primary goes, and why it would not fit; null if it does. */
  places: { domain: string; dev: string; problem: string | null }[];
}

const deadlineMs = 5_000;

/** Whether there is room for the rebuilds that are declared. */
export const spaceCheck: Check<Facts> = {
  name: 'space',
  gather: async (host) => ({
    places: await Promise.all(
      disksOf(host).flatMap((disk) => {
        const { rebuildTo } = disk.record;
        return rebuildTo === null ? [] : [placeOf(disk, rebuildTo, host.opener)];
      }),
    ),
  }),
  examine: ({ places }) => {
    const remarks = places.flatMap(({ domain, dev, problem }) =>
      problem === null
        ? []
        : trouble(
            'warning',
            `a new primary of ${domain} ${dev} has no room: ${problem}`,
            'after a failover, the rebuild would be refused',
            'make room there',
          ),
    );
    return remarks.length > 0 ? remarks : [ok(`${places.length} rebuilds have room`)];
  },
};

async function placeOf(
  { domain, record }: DeclaredDisk,
  rebuildTo: string,
  opener: ImageOpener,
): Promise<Facts['places'][number]> {
  const { dev, primary, mirror } = record;
  const names: Record<string, string> = { domain, dev, n: String(record.rebuilds + 1) };
  const target = rebuildTo.replaceAll(/\{(domain|dev|n)\}/g, (whole, name: string) => names[name] ?? whole);
  try {
    const sizeBytes = await imageSize((primary.current ? primary : mirror).image, { deadlineMs, opener });
    await requireSpace(parseImageUri(target), sizeBytes, { deadlineMs });
    return { domain, dev, problem: null };
  } catch (error) {
    if (!(error instanceof CdpError)) throw error;
    return { domain, dev, problem: error.message };
  }
}
