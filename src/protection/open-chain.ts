import type { BackingImage } from '../domain/disk-image.ts';
import type { Image } from '../domain/image.ts';
import { closeNodes } from '../graph/surgery.ts';
import type { Workbench } from './execute.ts';
import { openImage } from './open-image.ts';

/**
 * Opens an image and its backing files, which stay read-only, under libvirt's names; none is left behind if one can't be opened.
 * @throws as openImage
 */
export async function openChain(
  bench: Workbench,
  image: Image,
  backing: BackingImage[],
  names: string[],
): Promise<void> {
  const opened: string[] = [];
  let below: string | undefined;
  try {
    for (const layer of [...backing].reverse()) {
      const known = names.filter((name) => name.startsWith(`libvirt-${layer.index}-`));
      below = await openLayer(layer.image, known.length > 0 ? known : usualNames(layer), true);
    }
    const top = /^libvirt-\d+-/.exec(names[0] ?? '')?.[0] ?? '';
    await openLayer(
      image,
      names.filter((name) => name.startsWith(top)),
      false,
    );
  } catch (error) {
    await closeNodes(bench.live.monitor, opened);
    throw error;
  }

  async function openLayer(one: Image, layerNames: string[], readOnly: boolean): Promise<string> {
    const [formatNode = '', storageNode = `${formatNode}-file`] = layerNames;
    await openImage(bench, one, { storageNode, formatNode, readOnly, ...(below !== undefined && { backing: below }) });
    opened.unshift(formatNode, storageNode);
    return formatNode;
  }
}

/** A record of former days has the names of the topmost image alone. */
function usualNames({ index }: BackingImage): string[] {
  return [`libvirt-${index}-format`, `libvirt-${index}-storage`];
}
