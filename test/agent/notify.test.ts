import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import winston from 'winston';
import { Writable } from 'node:stream';
import { Notifier } from '../../src/agent/notify.ts';
import type { Config } from '../../src/config/config.ts';
import { eventWith } from '../control/fake-agent.ts';

describe('notifications', () => {
  let folder: string;
  let said: string;
  let config: Config['notify'];
  let notifier: Notifier;
  let warnings: string[];
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'virt-cdp-notify-'));
    said = join(folder, 'said');
    writeFileSync(said, '');
    warnings = [];
    config = { exec: ['/bin/sh', '-c', 'cat >>"$1"', 'sh', said], webhook: null, deadlineMs: 10_000 };
    const log = winston.createLogger({ level: 'warn' });
    log.pipe(
      new Writable({
        objectMode: true,
        write: (info: winston.LogEntry, _encoding, next) => {
          warnings.push(JSON.stringify(info));
          next();
        },
      }),
    );
    notifier = new Notifier(() => config, log);
  });
  afterEach(() => {
    notifier.close();
    rmSync(folder, { recursive: true });
  });

  /** Waits until something has been said, or warned of. */
  async function until<T>(look: () => T | undefined | false): Promise<T> {
    for (const endMs = Date.now() + 8_000; Date.now() < endMs;) {
      const found = look();
      if (found !== undefined && found !== false) return found;
      await sleep(10);
    }
    throw new Error(`in vain; said: ${readFileSync(said, 'utf8')}; warned: ${warnings.join('\n')}`);
  }
  const heard = (): number[] =>
    readFileSync(said, 'utf8')
      .split('\n')
      .filter(Boolean)
      .map((line) => (JSON.parse(line) as { seq: number }).seq);

  it('give a program each change of state on its stdin, in order, and nothing else', async () => {
    notifier.tell(eventWith({ seq: 1 }));
    notifier.tell(eventWith({ seq: 2, event: 'declared', from: null, to: null }));
    notifier.tell(eventWith({ seq: 3 }));
    await until(() => heard().length === 2);
    assert.deepEqual(heard(), [1, 3]);
    assert.deepEqual(JSON.parse(readFileSync(said, 'utf8').split('\n')[0]!), eventWith({ seq: 1 }));
    assert.deepEqual(warnings, []);
  });

  it('kill a program at the deadline, and go on with the next event', async () => {
    config = { ...config, exec: ['/bin/sleep', '1000'], deadlineMs: 50 };
    notifier.tell(eventWith({ seq: 1 }));
    config = { ...config, exec: ['/bin/sh', '-c', 'cat >>"$1"', 'sh', said], deadlineMs: 10_000 };
    notifier.tell(eventWith({ seq: 2 }));
    await until(() => heard().length === 1);
    assert.match(warnings.join(), /"seq":1.*did not end within 50 ms|did not end within 50 ms.*"seq":1/);
  });

  it('tell the log of a program that fails, or is not there, and never the caller', async () => {
    for (const [exec, why] of [
      [['/bin/false'], /ended with status 1/],
      [['/nonexistent/x'], /ENOENT/],
    ] as [[string], RegExp][]) {
      config = { ...config, exec };
      notifier.tell(eventWith());
      await until(() => why.test(warnings.join()));
    }
  });

  describe('to a webhook', () => {
    let server: Server;
    let bodies: string[];
    let status: number;
    beforeEach(async () => {
      bodies = [];
      status = 200;
      server = createServer((request, response) => {
        let body = '';
        request.on('data', (chunk: Buffer) => (body += chunk.toString()));
        request.on('end', () => {
          bodies.push(`${request.method ?? ''} ${request.headers['content-type'] ?? ''} ${body}`);
          if (status > 0) response.writeHead(status, { location: '/elsewhere' }).end('thanks');
        });
      });
      await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
      const { port } = server.address() as AddressInfo;
      config = { exec: null, webhook: `http://127.0.0.1:${port}/x`, deadlineMs: 5_000 };
    });
    afterEach(() => {
      server.closeAllConnections();
      server.close();
    });

    it('are a POST of the event', async () => {
      notifier.tell(eventWith({ seq: 9 }));
      const body = await until(() => bodies[0]);
      assert.equal(body, `POST application/json ${JSON.stringify(eventWith({ seq: 9 }))}`);
    });

    it('follow no redirection, and tell the log of a server that refuses or does not answer', async () => {
      for (const answer of [500, 302, 0]) {
        status = answer;
        warnings.length = 0;
        config = { ...config, deadlineMs: answer === 0 ? 50 : 5_000 };
        notifier.tell(eventWith());
        await until(() => warnings.length > 0);
      }
      assert.equal(bodies.length, 3);
    });
  });
});
