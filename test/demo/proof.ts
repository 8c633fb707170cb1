import { compareCopies, type Image } from '../lab/copies.ts';
import type { Witness } from '../lab/oracle.ts';

type Copy = 'primary' | 'mirror' | 'broken';

export interface Proof {
  acknowledged: number;
  /** Blocks whose last acknowledged record is not on the primary, or not on the mirror. */
  lost: number;
  /** How many of these each image lacks. */
  missing: Record<Copy, number>;
  /** Primary and mirror are the same, byte for byte. */
  identical: boolean;
  difference: string;
  guestErrors: number;
}

/** What a guest that is shut down was promised, against what its images hold. */
export async function prove(witness: Witness, images: Record<Copy, Image>): Promise<Proof> {
  const [primary, mirror, broken] = await Promise.all(
    [images.primary, images.mirror, images.broken].map((image) => witness.checkCopy(image, 'vda')),
  );
  const { identical, detail } = await compareCopies(images.primary, images.mirror);
  const lost = new Set([...primary!.missing, ...mirror!.missing].map(({ block }) => block));
  return {
    acknowledged: primary!.acknowledged,
    lost: lost.size,
    missing: { primary: primary!.missing.length, mirror: mirror!.missing.length, broken: broken!.missing.length },
    identical,
    difference: detail,
    guestErrors: witness.errors.length,
  };
}
