import type { Side } from '../model.ts';

/** What a copy's storage says when it is asked by somebody else than QEMU. */
export type Answer =
  | 'answers'
  /** It did before, since it is in use. */
  | 'silent'
  /** It may be a server that takes one client alone, QEMU. */
  | 'never answered'
  /** It answers others, and what QEMU itself has asked of it does not end. */
  | 'keeps QEMU waiting';

/** Two facts of a disk whose requests don't end: for how long, and what its storage says. */
export interface Evidence {
  /** How long the guest has waited without any request having ended. */
  stuckMs: number;
  /** The copies that its requests go to. */
  answers: Partial<Record<Side, Answer>>;
  /** The copies that it can do without: both of a pair, and one that is being brought up to date. */
  spare: Side[];
  /** The copy that is only being brought up to date. */
  target: Side | null;
  /** Somebody's block job, whose target may be what hangs. */
  otherJob: boolean;
}

export interface Verdict {
  /** What hangs; null: the storage answers, and nobody knows what QEMU waits for. */
  side: Side | 'both' | null;
  /** The copy that the guest is to be moved off, where QEMU can. */
  leave: Side | null;
}

/** Without a second fact it takes so many times the patience until somebody is blamed. */
const doubt = 3;

/**
 * Whether a disk hangs, and on what. A copy that answers nobody while the guest waits is at fault. Where that is not so clear, time has to
 * tell: a copy that is merely slow ends a request now and then. One that is only being brought up to date is not given that long. If nothing
 * speaks against either it is put down to the mirror, as with errors (docs/decisions/ambiguous-errors.md). A copy is never left for one that
 * does not answer.
 */
export function judge({ stuckMs, answers, spare, target, otherJob }: Evidence, patienceMs: number): Verdict | null {
  const sides = (['primary', 'mirror'] as const).filter((side) => answers[side] !== undefined);
  const late = sides.filter((side) => answers[side] !== 'answers');
  const isSure =
    late.length > 0 &&
    late.every((side) => answers[side] === 'silent' || (answers[side] === 'keeps QEMU waiting' && side === target));
  if (stuckMs < (isSure ? patienceMs : doubt * patienceMs)) return null;
  const [side, other] = late;
  if (side !== undefined && other !== undefined) return { side: 'both', leave: null };
  if (side !== undefined) return { side, leave: spare.includes(side) ? side : null };
  return { side: null, leave: !otherJob && spare.includes('mirror') ? 'mirror' : null };
}
