import type { HostView } from './host-view.ts';
import type { Remark } from './finding.ts';

/** One precondition of protection. */
export interface Check<Facts> {
  /** As users see it: one word, or several with hyphens. */
  name: string;
  /** Asks the host, with deadlines. What it throws is told as unknown. */
  gather(host: HostView): Promise<Facts>;
  /** Judges what was found, without asking anything more. */
  examine(facts: Facts): Remark[];
}
