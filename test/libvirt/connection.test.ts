import assert from 'node:assert/strict';
import { Connection } from '../../src/libvirt/connection.ts';
import {
  AuthRequiredError,
  CallTimeoutError,
  ConnectionLostError,
  LibvirtError,
  ProtocolError,
} from '../../src/libvirt/errors.ts';
import { keepaliveProcedure } from '../../src/libvirt/keepalive.ts';
import { openConnection } from '../../src/libvirt/opening.ts';
import { packetType } from '../../src/libvirt/packet.ts';
import { procedures, program } from '../../src/libvirt/procedures.ts';
import { FakeDaemon, until } from './fake-daemon.ts';
import type { FakeCall } from './fake-daemon.ts';

const rarely = { intervalMs: 60_000, unanswered: 1 };

describe('connection', () => {
  let daemon: FakeDaemon;
  const opened: Connection[] = [];

  beforeEach(async () => {
    daemon = await FakeDaemon.start();
  });

  afterEach(async () => {
    await Promise.all(opened.splice(0).map((connection) => connection.close()));
    await daemon.remove();
  });

  async function connect(keepalive = rarely): Promise<Connection> {
    const connection = await Connection.open({ socketPath: daemon.socketPath, keepalive });
    opened.push(connection);
    return connection;
  }

  /** The calls of `lookupByName` that have come in; nobody answers them but the test. */
  function collectLookups(): FakeCall[] {
    const calls: FakeCall[] = [];
    daemon.on(procedures.lookupByName, (call) => calls.push(call));
    return calls;
  }

  const domain = (name: string) => ({ name, uuid: '0f8fad5b-d9cb-469f-a165-70867728950e', id: 3 });

  it('gives each of several calls its own answer, in whatever order they come', async () => {
    const calls = collectLookups();
    const connection = await connect();
    const answers = ['a', 'b', 'c'].map((name) => connection.call(procedures.lookupByName, name));
    await until(() => calls.length === 3);
    for (const call of calls.toReversed()) {
      call.answer(procedures.lookupByName, domain(call.args(procedures.lookupByName)));
    }
    assert.deepEqual(await Promise.all(answers), [domain('a'), domain('b'), domain('c')]);
    assert.equal(connection.unanswered, 0);
  });

  it('rejects a call with the error that the daemon answers', async () => {
    const parts = { code: 42, domain: 10, level: 2, text: 'Domain not found' };
    daemon.on(procedures.lookupByName, (call) => call.refuse(parts));
    const connection = await connect();
    await assert.rejects(connection.call(procedures.lookupByName, 'x'), (error) => {
      assert.ok(error instanceof LibvirtError);
      const { code, domain: origin, level, text } = error;
      assert.deepEqual({ code, domain: origin, level, text }, parts);
      assert.equal(error.message, 'domainLookupByName: Domain not found');
      return true;
    });
  });

  it('rejects only the call whose answer it cannot read', async () => {
    daemon.on(procedures.lookupByName, (call) => call.raw({}, Buffer.alloc(3)));
    daemon.on(procedures.version, (call) => call.answer(procedures.version, 9_000_000));
    const connection = await connect();
    await assert.rejects(connection.call(procedures.lookupByName, 'x'), ProtocolError);
    assert.equal(await connection.call(procedures.version, undefined), 9_000_000);
  });

  it('rejects a call that cannot be sent, and keeps nothing of it', async () => {
    const connection = await connect();
    await assert.rejects(connection.call(procedures.lookupByUuid, 'no uuid'), ProtocolError);
    assert.equal(connection.unanswered, 0);
  });

  it('rejects every call in flight when the daemon goes away', async () => {
    const calls = collectLookups();
    const connection = await connect();
    let told = 0;
    connection.on('lost', () => told++);
    const answers = ['a', 'b'].map((name) => connection.call(procedures.lookupByName, name));
    const settled = Promise.allSettled(answers);
    await until(() => calls.length === 2);
    await daemon.die();
    for (const outcome of await settled) {
      assert.ok(outcome.status === 'rejected' && outcome.reason instanceof ConnectionLostError);
      assert.equal(outcome.reason.sent, true);
    }
    assert.equal(told, 1);
    assert.equal(connection.unanswered, 0);
  });

  it('rejects a call on a lost connection as not sent', async () => {
    const connection = await connect();
    await connection.close();
    await assert.rejects(
      connection.call(procedures.version, undefined),
      (error) => error instanceof ConnectionLostError && !error.sent,
    );
  });

  it('rejects the connecting when nobody listens', async () => {
    await daemon.die();
    await assert.rejects(connect(), ConnectionLostError);
  });

  it('gives up a call at its deadline, and takes its late answer without harm', async () => {
    const calls = collectLookups();
    const connection = await connect();
    let freed = 0;
    connection.on('placeFree', () => freed++);
    await assert.rejects(
      connection.call(procedures.lookupByName, 'slow', 5),
      (error) => error instanceof CallTimeoutError && error.sent,
    );
    assert.deepEqual([connection.unanswered, connection.overdue], [1, 1]);
    await until(() => calls.length === 1);
    calls[0]!.answer(procedures.lookupByName, domain('slow'));
    await until(() => freed === 1);
    assert.deepEqual([connection.unanswered, connection.overdue], [0, 0]);
    assert.equal(connection.lost, null);
  });

  it('answers the daemon’s pings', async () => {
    await connect();
    await until(() => daemon.peers.length === 1);
    const [peer] = daemon.peers;
    peer!.send({ program: program.keepalive, procedure: keepaliveProcedure.ping, type: packetType.message });
    await until(() => peer!.heard.length === 1);
    assert.deepEqual(peer!.heard, [
      {
        program: program.keepalive,
        version: 1,
        procedure: keepaliveProcedure.pong,
        type: packetType.message,
        serial: 0,
        status: 0,
      },
    ]);
  });

  it('notices a daemon that answers no pings', async () => {
    daemon.answersKeepalive = false;
    const connection = await connect({ intervalMs: 3, unanswered: 2 });
    await assert.rejects(connection.call(procedures.version, undefined), /answers no keepalive/);
  });

  it('stays with a daemon that answers pings', async () => {
    const connection = await connect({ intervalMs: 20, unanswered: 5 });
    await until(() => (daemon.peers[0]?.heard.length ?? 0) > 6);
    assert.equal(connection.lost, null);
  });

  const garbage: [string, (call: FakeCall) => void][] = [
    ['an answer to no call', (call) => call.raw({ serial: 99 }, Buffer.alloc(0))],
    ['the answer of another procedure', (call) => call.raw({ procedure: 24 }, Buffer.alloc(0))],
    ['another program version', (call) => call.raw({ version: 2 }, Buffer.alloc(0))],
    ['a stream', (call) => call.raw({ type: packetType.stream }, Buffer.alloc(0))],
    ['bytes that are no packet', (call) => call.peer.socket.write('HTTP/1.1 400 Bad Request\r\n\r\n')],
  ];
  for (const [name, misbehave] of garbage) {
    it(`ends when the daemon sends ${name}`, async () => {
      daemon.on(procedures.lookupByName, misbehave);
      const connection = await connect();
      await assert.rejects(connection.call(procedures.lookupByName, 'x'), (error) => {
        assert.ok(error instanceof ConnectionLostError);
        assert.ok(error.cause instanceof ProtocolError);
        return true;
      });
    });
  }

  it('leaves no timer and no socket behind', async () => {
    const resources = async (): Promise<string[]> => {
      await new Promise((resolve) => setImmediate(resolve));
      return process.getActiveResourcesInfo().filter((kind) => kind === 'Timeout' || kind === 'PipeWrap');
    };
    const before = await resources();
    const calls = collectLookups();
    const connection = await connect();
    const settled = Promise.allSettled([
      connection.call(procedures.lookupByName, 'a'),
      connection.call(procedures.lookupByName, 'b', 1),
    ]);
    await until(() => calls.length === 2 && connection.overdue === 1);
    await connection.close();
    await settled;
    await until(() => daemon.peers.length === 0);
    assert.deepEqual((await resources()).toSorted(), before.toSorted());
  });
});

describe('opening', () => {
  let daemon: FakeDaemon;

  beforeEach(async () => {
    daemon = await FakeDaemon.start();
  });

  afterEach(() => daemon.remove());

  it('opens the driver’s URI', async () => {
    const uris: (string | null)[] = [];
    daemon.on(procedures.connectOpen, (call) => {
      uris.push(call.args(procedures.connectOpen).uri);
      call.answer(procedures.connectOpen, undefined);
    });
    const connection = await openConnection({ socketPath: daemon.socketPath });
    await connection.close();
    assert.deepEqual(uris, ['qemu:///system']);
  });

  it('says that root is needed when the daemon asks for authentication', async () => {
    daemon.on(procedures.authList, (call) => call.answer(procedures.authList, [2]));
    await assert.rejects(openConnection({ socketPath: daemon.socketPath }), AuthRequiredError);
    await until(() => daemon.peers.length === 0);
  });

  it('ends when it is given up', async () => {
    const giveUp = new AbortController();
    daemon.on(procedures.authList, () => giveUp.abort());
    await assert.rejects(openConnection({ socketPath: daemon.socketPath, signal: giveUp.signal }), ConnectionLostError);
    await until(() => daemon.peers.length === 0);
  });
});
