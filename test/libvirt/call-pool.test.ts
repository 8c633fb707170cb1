import assert from 'node:assert/strict';
import { CallPool } from '../../src/libvirt/call-pool.ts';
import { CallTimeoutError, ConnectionLostError } from '../../src/libvirt/errors.ts';
import { openConnection } from '../../src/libvirt/opening.ts';
import { procedures } from '../../src/libvirt/procedures.ts';
import { FakeDaemon, until } from './fake-daemon.ts';
import type { FakeCall, FakePeer } from './fake-daemon.ts';

describe('call pool', () => {
  let daemon: FakeDaemon;
  let pool: CallPool;
  /** Calls that wait for their answer. */
  let waiting: FakeCall[];

  beforeEach(async () => {
    daemon = await FakeDaemon.start();
    pool = new CallPool({
      open: (signal) => openConnection({ socketPath: daemon.socketPath, signal }),
      maxConnections: 6,
    });
    waiting = [];
    daemon.on(procedures.version, (call) => waiting.push(call));
  });

  afterEach(async () => {
    await pool.empty(new ConnectionLostError('end of test'));
    await daemon.remove();
  });

  const make = (count: number, deadlineMs?: number): Promise<PromiseSettledResult<number>[]> =>
    Promise.allSettled(Array.from({ length: count }, () => pool.call(procedures.version, undefined, deadlineMs)));

  function answerAll(): void {
    for (const call of waiting.splice(0)) call.answer(procedures.version, 1);
  }

  function perPeer(): number[] {
    const counts = new Map<FakePeer, number>();
    for (const { peer } of waiting) counts.set(peer, (counts.get(peer) ?? 0) + 1);
    return [...counts.values()];
  }

  it('opens one connection for one call after another', async () => {
    for (let count = 0; count < 6; count++) {
      const made = make(1);
      await until(() => waiting.length === 1);
      answerAll();
      await made;
    }
    assert.equal(daemon.peers.length, 1);
  });

  it('puts at most four calls on a connection, at most six connections, and lets the others wait', async () => {
    const made = make(30);
    await until(() => waiting.length === 24);
    assert.deepEqual(perPeer(), [4, 4, 4, 4, 4, 4]);
    answerAll();
    await until(() => waiting.length === 6);
    assert.ok(Math.max(...perPeer()) <= 4);
    answerAll();
    assert.ok((await made).every((outcome) => outcome.status === 'fulfilled'));
  });

  it('sends first, of the calls that wait, those for the guest that has stood still for the longest', async () => {
    const named: string[] = [];
    daemon.on(procedures.lookupByName, (call) => {
      named.push(call.args(procedures.lookupByName));
      call.answer(procedures.lookupByName, { name: 'web1', uuid: '00000000-0000-4000-8000-000000000001', id: 1 });
    });
    const made = make(24);
    await until(() => waiting.length === 24);
    const look = (name: string, stillSinceMs?: number): Promise<unknown> =>
      pool.call(procedures.lookupByName, name, undefined, stillSinceMs);
    const looks = [look('runs'), look('since 2', 2), look('since 1', 1), look('runs, too'), look('since 2, too', 2)];
    waiting.shift()?.answer(procedures.version, 1);
    await Promise.all(looks);
    assert.deepEqual(named, ['since 1', 'since 2', 'since 2, too', 'runs', 'runs, too']);
    answerAll();
    await made;
  });

  it('keeps the place of a call past its deadline taken until its answer comes', async () => {
    const overdue = await make(4, 20);
    assert.ok(overdue.every((outcome) => outcome.status === 'rejected' && outcome.reason instanceof CallTimeoutError));
    assert.equal(pool.overdue, 4);
    const made = make(1);
    await until(() => waiting.length === 5);
    assert.equal(daemon.peers.length, 2);
    answerAll();
    await made;
    await until(() => pool.overdue === 0);
  });

  it('gives up a call that could not be sent by its deadline, and says so', async () => {
    const made = make(24);
    await until(() => waiting.length === 24);
    await assert.rejects(
      pool.call(procedures.version, undefined, 5),
      (error) => error instanceof CallTimeoutError && !error.sent,
    );
    answerAll();
    await made;
    assert.equal(waiting.length, 0);
  });

  it('sends waiting calls over a new connection when one is lost', async () => {
    const made = make(26);
    await until(() => waiting.length === 24);
    const [dead] = daemon.peers;
    waiting = waiting.filter((call) => call.peer !== dead);
    dead!.socket.destroy();
    await until(() => waiting.length === 22);
    answerAll();
    const outcomes = await made;
    assert.equal(outcomes.filter((outcome) => outcome.status === 'rejected').length, 4);
  });

  it('rejects the calls when no connection can be opened', async () => {
    await daemon.die();
    const outcomes = await make(9);
    assert.ok(outcomes.every(({ status }) => status === 'rejected'));
  });

  it('rejects every call when it is emptied, sent or not, also while it connects', async () => {
    daemon.on(procedures.authList, () => undefined);
    const connecting = make(30);
    await until(() => daemon.peers.some((peer) => peer.heard.length > 0));
    await pool.empty(new ConnectionLostError('gone'));
    const outcomes = await connecting;
    assert.ok(outcomes.every((one) => one.status === 'rejected' && one.reason instanceof ConnectionLostError));
    await until(() => daemon.peers.length === 0);
  });
});
