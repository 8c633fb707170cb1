import { setTimeout as sleep } from 'node:timers/promises';
import type { Context } from './command.ts';
import { Progress } from './progress.ts';

const pollMs = 500;

/** Shows how a domain's disks get on until the agent has answered; null after Ctrl-C, which the agent does not mind. */
export async function watchWhile<T>(
  { client, out, interrupt }: Context,
  domain: string,
  answer: Promise<T>,
): Promise<T | null> {
  const progress = new Progress(out);
  const ended = new AbortController();
  const stop = AbortSignal.any([interrupt, ended.signal]);
  const interrupted = new Promise<null>((resolve) => {
    stop.addEventListener('abort', () => resolve(null));
  });
  const watch = async (): Promise<void> => {
    while (!stop.aborted) {
      // Whatever is wrong is the answer's to tell.
      const status = await client.domain(domain).catch(() => null);
      const working = status?.disks.filter(({ job }) => job?.kind === 'verify') ?? [];
      if (working.length > 0) progress.show(working, performance.now());
      await sleep(pollMs, undefined, { signal: stop }).catch(() => undefined);
    }
  };
  const watched = watch();
  try {
    return await Promise.race([answer, interrupted]);
  } finally {
    ended.abort();
    await watched;
    progress.close();
  }
}
