/** From best to worst. `unknown`: it could not be found out. */
export const severities = ['ok', 'unknown', 'warning', 'error'] as const;

export type Severity = (typeof severities)[number];

/** What one check has to say of one thing. */
export interface Finding {
  /** The check's name. */
  check: string;
  severity: Severity;
  /** What is so, as a sentence. */
  what: string;
  /** Why it matters; null where all is well. */
  why: string | null;
  /** What to type, or do; null where all is well. */
  fix: string | null;
}

/** A check's own words; its name is put in by whoever asks it. */
export type Remark = Omit<Finding, 'check'>;

export function ok(what: string): Remark {
  return { severity: 'ok', what, why: null, fix: null };
}

export function trouble(severity: Exclude<Severity, 'ok'>, what: string, why: string, fix: string): Remark {
  return { severity, what, why, fix };
}
