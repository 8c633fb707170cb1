import type { Row } from './figures.ts';

export interface Bench {
  /** As `--only` takes it. */
  name: string;
  /** `quick`: few rounds of little, to see that it works. */
  run: (options: { quick: boolean }) => Promise<Row[]>;
}
