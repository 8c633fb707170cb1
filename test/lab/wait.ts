import { setTimeout as sleep } from 'node:timers/promises';

/**
 * Waits until `check` answers something truthy, and returns that. For conditions that no event announces: it looks every
 * 50 ms. After `timeoutMs` it fails, naming `what` it waited for and, by `describe`, what it saw instead.
 */
export async function waitFor<T>(
  what: string,
  check: () => T | Promise<T>,
  timeoutMs: number,
  describe: () => string | Promise<string> = () => '',
): Promise<NonNullable<T>> {
  const deadline = Date.now() + timeoutMs;
  for (;;) {
    const answer = await check();
    if (answer) return answer;
    if (Date.now() > deadline) throw new Error(await timeoutText(what, timeoutMs, describe));
    await sleep(50);
  }
}

/** Waits for a promise, but no longer than `timeoutMs`. */
export async function within<T>(
  what: string,
  promise: Promise<T>,
  timeoutMs: number,
  describe: () => string | Promise<string> = () => '',
): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<'late'>((resolve) => {
    timer = setTimeout(resolve, timeoutMs, 'late');
  });
  try {
    const first = await Promise.race([promise.then((value) => ({ value })), late]);
    if (first === 'late') throw new Error(await timeoutText(what, timeoutMs, describe));
    return first.value;
  } finally {
    clearTimeout(timer);
  }
}

async function timeoutText(what: string, timeoutMs: number, describe: () => string | Promise<string>): Promise<string> {
  return `waited ${timeoutMs} ms in vain for ${what}\n${await describe()}`.trim();
}
