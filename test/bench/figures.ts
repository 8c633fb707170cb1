/** Of several measurements of one thing. */
export interface Figure {
  median: number;
  /** A twentieth of the measurements are below, a twentieth above: of few, the lowest and the highest. */
  low: number;
  high: number;
  count: number;
}

export function figure(values: readonly number[]): Figure {
  const sorted = [...values].sort((a, b) => a - b);
  const at = (share: number): number => sorted[Math.round(share * (sorted.length - 1))] ?? NaN;
  return { median: at(0.5), low: at(0.05), high: at(0.95), count: sorted.length };
}

/** A line of the table: something, beside what it is to be compared with, measured in turns. */
export interface Row {
  /** The case that it is of. */
  of: string;
  what: string;
  value: Figure;
  unit: string;
  against: string;
  base: Figure;
  /** Of each measurement to the one beside it. */
  ratio: Figure;
  aim: { text: string; met: boolean } | null;
}

/** What is measured: `values[i]` and `bases[i]` were measured one after the other. */
export interface Comparison {
  what: string;
  unit: string;
  values: readonly number[];
  against: string;
  bases: readonly number[];
  aim?: { text: string; met: (row: { value: Figure; ratio: Figure }) => boolean };
}

export function row(of: string, { what, unit, values, against, bases, aim }: Comparison): Row {
  const [value, base] = [figure(values), figure(bases)];
  const ratio = figure(values.map((one, index) => one / (bases[index] ?? NaN)));
  return {
    ...{ of, what, value, unit, against, base, ratio },
    aim: aim === undefined ? null : { text: aim.text, met: aim.met({ value, ratio }) },
  };
}

/** Markdown, as docs/benchmark.md has it. */
export function table(rows: readonly Row[]): string {
  const cells = rows.map(({ of, what, value, unit, against, base, ratio, aim }) => [
    of,
    what,
    `${spread(value)} ${unit}`,
    against,
    `${spread(base)} ${unit}`,
    spread(ratio),
    aim === null ? '' : `${aim.text}: ${aim.met ? 'met' : '**missed**'}`,
  ]);
  const head = ['case', 'measured', 'median (5 % to 95 %)', 'against', 'median (5 % to 95 %)', 'ratio', 'aim'];
  return [head, head.map(() => '---'), ...cells].map((line) => `| ${line.join(' | ')} |`).join('\n');
}

function spread({ median, low, high }: Figure): string {
  return low === high ? short(median) : `${short(median)} (${short(low)} to ${short(high)})`;
}

const short = (value: number): string => String(Number(value.toPrecision(value >= 1000 ? 4 : 3)));
