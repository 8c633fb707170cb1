import type { Side } from '../../src/protection/model.ts';
import type { Health } from '../../src/protection/observation.ts';
import type { AtStop } from '../../src/protection/record.ts';
import type { VerifyView } from '../../src/protection/verification.ts';

/** What the agent knows of a disk besides; it is lost when the agent crashes. */
export class SimulatedMemory {
  health: Record<Side, Health> = { primary: { is: 'unknown' }, mirror: { is: 'unknown' } };
  copyFailed: string | null = null;
  deltaPasses = 0;
  verify: VerifyView = { is: 'none' };
  touched: Side[] = [];
  mayRetry = true;
  atStop: AtStop | null = null;
  /** It was given another root since its I/O failed. */
  movedOn = false;
  readonly epochFlushes = new Map<string, number>();

  /** A copy that answered and then failed again is asked again, and not at once. */
  answerIsUsedUp(): void {
    this.health = { primary: { is: 'unknown' }, mirror: { is: 'unknown' } };
    this.mayRetry = false;
  }

  opened(side: Side): void {
    this.health[side] = { is: 'answering' };
    this.touched = this.touched.filter((other) => other !== side);
    this.deltaPasses = 0;
  }

  /** Somebody has asked for something: it is tried at once, and what failed before is past. */
  succeeded(): void {
    this.mayRetry = true;
    this.copyFailed = null;
  }

  failed(side: Side | null): void {
    this.mayRetry = false;
    if (side !== null) this.health[side] = { is: 'failed', why: 'EIO', noSpace: false };
  }
}
