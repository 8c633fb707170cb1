import assert from 'node:assert/strict';
import { callEach } from '../../src/libvirt/listeners.ts';

describe('listeners', () => {
  let mochas: NodeJS.UncaughtExceptionListener[];

  beforeEach(() => {
    mochas = process.listeners('uncaughtException');
  });

  afterEach(() => {
    process.removeAllListeners('uncaughtException');
    for (const listener of mochas) process.on('uncaughtException', listener);
  });

  it('are all called although one throws, and the exception is not swallowed', async () => {
    process.removeAllListeners('uncaughtException');
    const surfaced = new Promise<Error>((resolve) => process.once('uncaughtException', resolve));
    const called: string[] = [];
    const broken = new Error('broken listener');
    callEach(
      [
        () => {
          throw broken;
        },
        (event: string) => called.push(event),
      ],
      'started',
    );
    assert.deepEqual(called, ['started']);
    assert.equal(await surfaced, broken);
  });
});
