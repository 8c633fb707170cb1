import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { chmod, mkdtemp, rm, stat, writeFile } from 'node:fs/promises';
import { connect, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { promisify } from 'node:util';
import { AgentClient } from '../../src/control/client.ts';
import { errorAnswerSchema } from '../../src/control/schema.ts';
import { startServer } from '../../src/control/server.ts';
import { AgentUnreachableError, send } from '../../src/control/transport.ts';
import { CdpError, RefusedError, UsageError } from '../../src/errors.ts';
import type { ProtectionEvent } from '../../src/protection/model.ts';
import { FakeAgent, diskWith, domainWith, quietLog } from './fake-agent.ts';

describe('the agent on its socket', () => {
  let agent: FakeAgent;
  beforeEach(async () => {
    agent = await new FakeAgent().start();
    agent.statuses.set('web1', domainWith());
  });
  afterEach(() => agent.stop());

  it('answers what the agent says of domains', async () => {
    agent.undeclared.push(domainWith({ domain: 'plain', disks: [] }));
    assert.deepEqual(await agent.client.domain('web1'), domainWith());
    assert.deepEqual(
      (await agent.client.domains(false)).map(({ domain }) => domain),
      ['web1'],
    );
    assert.deepEqual(
      (await agent.client.domains(true)).map(({ domain }) => domain),
      ['web1', 'plain'],
    );
    assert.equal(await agent.client.version(), '1.2.3');
  });

  it('tells its metrics as text', async () => {
    const { socketPath } = agent;
    const answer = await send({ socketPath, method: 'GET', path: '/metrics', deadlineMs: 5000 });
    assert.deepEqual(answer, { status: 200, text: 'virt_cdp_up 1\n' });
    const posted = await send({ socketPath, method: 'POST', path: '/metrics', deadlineMs: 5000 });
    assert.equal(posted.status, 404);
  });

  it('takes any name that a domain can have', async () => {
    for (const name of ['..', 'a b', 'ü%2F?#', 'x/y']) {
      agent.statuses.set(name, domainWith({ domain: name }));
      assert.equal((await agent.client.domain(name)).domain, name);
      await agent.client.act(name, 'hold', {});
      assert.equal(agent.acts.at(-1)?.domain, name);
    }
  });

  it("passes an action's arguments on, and its result back", async () => {
    const args = { disk: 'vda', mirror: '/mirror/web1.raw', create: true };
    const result = await agent.client.act('web1', 'protect', args);
    assert.deepEqual(agent.acts, [{ domain: 'web1', action: 'protect', args }]);
    assert.deepEqual(result, { message: 'protect of web1 accepted', warnings: [], status: domainWith() });
  });

  it('passes a hook on, also with a large XML', async () => {
    agent.onHook = () => ({ refuse: { message: 'the primary is stale' }, xml: null });
    const domainXml = `<domain>${'<disk/>'.repeat(300_000)}</domain>`;
    const call = { operation: 'prepare', subOperation: 'begin', extra: '-', domainXml };
    assert.deepEqual(await agent.client.hook(call, 5000), { refuse: { message: 'the primary is stale' }, xml: null });
    assert.deepEqual(agent.hookCalls, [call]);
  });

  for (const [type, status] of [
    [RefusedError, 409],
    [UsageError, 400],
    [CdpError, 500],
  ] as const) {
    it(`gives a ${type.name} back as one, with its code, message and hint`, async () => {
      agent.onAct = () => Promise.reject(new type({ code: 'mirror-stale', message: 'no', hint: 'do this' }));
      await assert.rejects(agent.client.act('web1', 'failover', {}), (error) => {
        assert(error instanceof CdpError);
        assert.equal(error.constructor, type);
        assert.deepEqual([error.code, error.message, error.hint], ['mirror-stale', 'no', 'do this']);
        return true;
      });
      assert.equal((await post('/v1/domains/web1/failover', '{}')).status, status);
    });
  }

  it('says 404 of a domain that does not exist', async () => {
    await assert.rejects(agent.client.domain('web9'), { name: 'CdpError', code: 'no-such-domain' });
    assert.equal((await get('/v1/domains/web9')).status, 404);
  });

  it('tells nothing of an unexpected error but logs it', async () => {
    agent.onAct = () => Promise.reject(new Error('secret detail'));
    const answer = await post('/v1/domains/web1/hold', '{}');
    assert.equal(answer.status, 500);
    assert.doesNotMatch(answer.text, /secret|at /);
    assert.match(agent.logged.join(), /secret detail/);
  });

  it("does not pass on an agent's answer that is not as it must be", async () => {
    agent.statuses.set('web1', { ...domainWith(), colour: 'green' } as never);
    assert.equal((await get('/v1/domains/web1')).status, 500);
  });

  for (const [what, path, body, status] of [
    ['bad JSON', '/v1/domains/web1/hold', '{', 400],
    ['an unknown key', '/v1/domains/web1/hold', '{"now":true}', 400],
    ['a wrong type', '/v1/domains/web1/resync', '{"full":"yes"}', 400],
    ['no mirror', '/v1/domains/web1/protect', '{"disk":"vda"}', 400],
    ['two mirrors', '/v1/domains/web1/protect', '{"disk":"vda","mirror":"/a","mirrorXml":"<disk/>"}', 400],
    ['a list', '/v1/domains/web1/start', '[]', 400],
    ['an unknown action', '/v1/domains/web1/toString', '{}', 404],
    ['an unknown query', '/v1/domains/web1/hold?x=1', '{}', 400],
    ['a name that is not UTF-8', '/v1/domains/%ff/hold', '{}', 400],
    ['a body of 2 MiB', '/v1/domains/web1/hold', `"${'x'.repeat(2 * 1024 * 1024)}"`, 413],
    ['an unknown path', '/v2/domains', '{}', 404],
    ['a wrong method', '/v1/version', '{}', 405],
  ] as const) {
    it(`refuses ${what} with ${status} and JSON`, async () => {
      const answer = await post(path, body);
      assert.equal(answer.status, status);
      errorAnswerSchema.parse(JSON.parse(answer.text));
      assert.deepEqual(agent.acts, []);
    });
  }

  it('refuses wrong queries', async () => {
    for (const path of [
      '/v1/events?since=-1',
      '/v1/events?since=x',
      '/v1/events?follow=2',
      '/v1/domains?all=1&all=1',
    ]) {
      assert.equal((await get(path)).status, 400, path);
    }
  });

  it('checks arguments before they are sent', async () => {
    await assert.rejects(agent.client.act('web1', 'protect', { disk: 'vda' }), UsageError);
    await assert.rejects(agent.client.domain(''), UsageError);
  });

  it('sends past events and ends', async () => {
    agent.emit({ detail: { text: 'with a\nnewline' } });
    agent.emit({ event: 'failed-over', disk: null });
    assert.deepEqual(await take(agent.client.events(0), 9), agent.past);
    assert.deepEqual(await take(agent.client.events(1), 9), agent.past.slice(1));
    assert.deepEqual(await take(agent.client.events('now'), 9), []);
  });

  it('goes on with later events, without a gap, and forgets a follower that goes', async () => {
    agent.emit({});
    const events = agent.client.events(0, { follow: true });
    assert.equal((await events.next()).value?.seq, 1);
    agent.emit({});
    agent.emit({});
    assert.deepEqual(
      (await take(events, 2)).map(({ seq }) => seq),
      [2, 3],
    );
    await until(() => agent.followers === 0);
  });

  it('ends a follower that breaks off, without an error', async () => {
    const stop = new AbortController();
    const events = take(agent.client.events('now', { follow: true, signal: stop.signal }), 9);
    await until(() => agent.followers === 1);
    stop.abort();
    assert.deepEqual(await events, []);
  });

  it('tells a follower that the agent has gone', async () => {
    const other = await new FakeAgent().start();
    const events = take(other.client.events('now', { follow: true }), 9);
    await until(() => other.followers === 1);
    await Promise.all([other.stop(), assert.rejects(events, AgentUnreachableError)]);
  });

  it('answers what is not HTTP with 400 and JSON', async () => {
    for (const bytes of ['\0\0\0\r\n\r\n', 'HELO you\r\n\r\n', `GET /${'x'.repeat(20_000)} HTTP/1.1\r\n\r\n`]) {
      const text = await raw(bytes);
      assert.match(text, /^HTTP\/1.1 4\d\d /);
      errorAnswerSchema.parse(JSON.parse(text.slice(text.indexOf('\r\n\r\n'))));
    }
  });

  function get(path: string) {
    return send({ socketPath: agent.socketPath, method: 'GET', path, deadlineMs: 5000 });
  }

  async function post(path: string, body: string) {
    const head = `POST ${path} HTTP/1.1\r\nhost: x\r\ncontent-length: ${Buffer.byteLength(body)}\r\nconnection: close\r\n\r\n`;
    const text = await raw(head + body);
    return { status: Number(text.slice(9, 12)), text: text.slice(text.indexOf('\r\n\r\n')) };
  }

  function raw(bytes: string): Promise<string> {
    return new Promise((resolve, reject) => {
      const socket = connect(agent.socketPath, () => socket.write(bytes));
      let text = '';
      socket.setEncoding('utf8').on('data', (chunk: string) => (text += chunk));
      socket.on('error', reject).on('close', () => resolve(text));
    });
  }
});

/** What becomes of a connection by another user's process. */
async function connectsAs(uid: number, gid: number, socketPath: string): Promise<string> {
  const script =
    "require('node:net').connect(process.argv[1]).on('connect', function () { console.log('connected'); this.destroy(); })" +
    ".on('error', ({ code }) => console.log(code))";
  const drop = ['--reuid', String(uid), '--regid', String(gid), '--clear-groups', process.execPath];
  const { stdout } = await promisify(execFile)('setpriv', [...drop, '--eval', script, '--', socketPath]);
  return stdout.trim();
}

describe('the socket itself', () => {
  let folder: string;
  beforeEach(async () => (folder = await mkdtemp(join(tmpdir(), 'virt-cdp-socket-'))));
  afterEach(() => rm(folder, { recursive: true }));

  const start = (socketPath: string) =>
    startServer({ socketPath, api: new FakeAgent(), log: quietLog(() => undefined), version: '1' });

  it('has mode 0660 in a folder of mode 0755, and is gone after close', async () => {
    const socketPath = join(folder, 'run', 'virt-cdp.sock');
    const server = await start(socketPath);
    assert.equal((await stat(socketPath)).mode & 0o777, 0o660);
    assert.equal((await stat(dirname(socketPath))).mode & 0o777, 0o755);
    await server.close();
    await assert.rejects(stat(socketPath), { code: 'ENOENT' });
  });

  it('is given to a group, and refused to one that is not there', async function () {
    if (process.getuid?.() !== 0) this.skip();
    const log = quietLog(() => undefined);
    const socketPath = join(folder, 'group.sock');
    const options = { socketPath, api: new FakeAgent(), log, version: '1' };
    const server = await startServer({ ...options, group: 'daemon' });
    const { mode, uid, gid } = await stat(socketPath);
    assert.deepEqual([mode & 0o777, uid, gid], [0o660, 0, 1]);
    await server.close();
    await assert.rejects(startServer({ ...options, group: 'nonexistent' }), { code: 'cannot-listen' });
    await assert.rejects(stat(socketPath), { code: 'ENOENT' });
  });

  it('is reached by root and by its group, and by nobody else', async function () {
    if (process.getuid?.() !== 0) this.skip();
    await chmod(folder, 0o755);
    const socketPath = join(folder, 'closed.sock');
    const server = await startServer({
      ...{ socketPath, api: new FakeAgent(), log: quietLog(() => undefined), version: '1' },
      group: 'daemon',
    });
    const [root, daemon, nobody] = [0, 1, 65534];
    assert.equal(await connectsAs(root, root, socketPath), 'connected');
    assert.equal(await connectsAs(nobody, daemon, socketPath), 'connected');
    assert.equal(await connectsAs(nobody, nobody, socketPath), 'EACCES');
    await server.close();
  });

  it('replaces a socket that nobody answers on', async () => {
    const socketPath = join(folder, 'a.sock');
    const other = createServer();
    await new Promise<void>((done) => other.listen(join(folder, 'old.sock'), done));
    // Closing would remove the file under its first name: renamed, it stays behind as after a crash.
    await (await import('node:fs/promises')).rename(join(folder, 'old.sock'), socketPath);
    await new Promise((done) => other.close(done));
    const server = await start(socketPath);
    assert.equal(await new AgentClient({ socketPath }).version(), '1');
    await server.close();
  });

  it('leaves a live agent alone', async () => {
    const socketPath = join(folder, 'a.sock');
    const server = await start(socketPath);
    await assert.rejects(start(socketPath), { code: 'agent-already-running', message: /another agent is running/ });
    assert.equal(await new AgentClient({ socketPath }).version(), '1');
    await server.close();
  });

  it('never removes a file that is not a socket', async () => {
    const socketPath = join(folder, 'precious');
    await writeFile(socketPath, 'data');
    await assert.rejects(start(socketPath), { code: 'socket-in-the-way' });
    await stat(socketPath);
  });

  it('tells why an agent cannot be reached', async () => {
    const client = new AgentClient({ socketPath: join(folder, 'none.sock') });
    await assert.rejects(client.version(), (error) => {
      assert(error instanceof AgentUnreachableError);
      assert.equal(error.code, 'agent-unreachable');
      assert.match(error.hint ?? '', /systemctl start virt-cdpd/);
      return true;
    });
  });

  it('gives up on an agent that does not answer', async () => {
    const socketPath = join(folder, 'silent.sock');
    const silent = createServer((socket) => void socket.on('error', () => undefined));
    await new Promise<void>((done) => silent.listen(socketPath, done));
    await chmod(socketPath, 0o600);
    const client = new AgentClient({ socketPath, deadlineMs: 50 });
    await assert.rejects(client.domains(true), { code: 'agent-unreachable', message: /within 0.05 s/ });
    await assert.rejects(take(client.events(0), 1), { code: 'agent-unreachable' });
    silent.close();
  });

  it('refuses an answer of another version', async () => {
    const socketPath = join(folder, 'other.sock');
    const other = await import('node:http').then(({ createServer: http }) =>
      http((_request, response) => response.end('{"release":"9"}')),
    );
    await new Promise<void>((done) => other.listen(socketPath, done));
    await assert.rejects(new AgentClient({ socketPath }).version(), { code: 'bad-answer' });
    other.close();
  });
});

describe('the schemas', () => {
  it('take a stale mixture and every kind of job', async () => {
    const agent = await new FakeAgent().start();
    const primary = { source: '/a', current: false, reachable: null, consistentAsOf: null, mixture: true } as const;
    const disks = (['full-sync', 'delta-sync', 'rebuild'] as const).map((kind) =>
      diskWith({ primary, state: 'rebuilding', job: { kind, done: 1, total: 2 }, exposedBytes: 2 ** 45 }),
    );
    agent.statuses.set('web1', domainWith({ disks }));
    assert.deepEqual(await agent.client.domain('web1'), domainWith({ disks }));
    await agent.stop();
  });
});

async function take(events: AsyncGenerator<ProtectionEvent>, count: number): Promise<ProtectionEvent[]> {
  const taken: ProtectionEvent[] = [];
  for await (const event of events) {
    taken.push(event);
    if (taken.length === count) break;
  }
  return taken;
}

async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => setTimeout(resolve, 5));
}
