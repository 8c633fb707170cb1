import type { DiskStep, Surgery } from './surgery.ts';

/** What one disk needs next. */
export type DiskPlan =
  { kind: 'nothing' } | { kind: 'steps'; steps: DiskStep[] } | { kind: 'surgery'; surgery: Surgery };

export const nothing: DiskPlan = { kind: 'nothing' };
export const steps = (...list: DiskStep[]): DiskPlan => ({ kind: 'steps', steps: list });
export const surgery = (one: Surgery): DiskPlan => ({ kind: 'surgery', surgery: one });
