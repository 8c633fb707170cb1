import assert from 'node:assert/strict';
import { lifecycleEvent } from '../../src/libvirt/constants.ts';
import { ConnectionLostError, LibvirtError } from '../../src/libvirt/errors.ts';
import { eventKinds } from '../../src/libvirt/events.ts';
import { procedures } from '../../src/libvirt/procedures.ts';
import { LibvirtSession } from '../../src/libvirt/session.ts';
import { FakeDaemon, until } from './fake-daemon.ts';
import type { FakeCall } from './fake-daemon.ts';

const domain = { name: 'vm', uuid: '0f8fad5b-d9cb-469f-a165-70867728950e', id: 1 };
const started = { domain, event: lifecycleEvent.started, detail: 0 };

describe('session', () => {
  let daemon: FakeDaemon;
  let session: LibvirtSession;
  /** What the session told, in order. */
  let told: string[];
  /** Who asked for events, by number of the event. */
  let registered: { event: number; call: FakeCall }[];

  beforeEach(async () => {
    daemon = await FakeDaemon.start();
    registered = [];
    daemon.on(procedures.eventRegister, (call) => {
      registered.push({ event: call.args(procedures.eventRegister).event, call });
      call.answer(procedures.eventRegister, registered.length);
    });
    daemon.on(procedures.version, (call) => call.answer(procedures.version, 9_000_000));
    told = [];
    session = LibvirtSession.start({ socketPath: daemon.socketPath, minBackoffMs: 1, maxBackoffMs: 4 });
    session.onConnected(() => told.push('connected'));
    session.onDisconnected(() => told.push('disconnected'));
  });

  afterEach(async () => {
    await session.close();
    await daemon.remove();
  });

  const connected = (): Promise<void> => until(() => session.state === 'connected');

  async function restartDaemon(): Promise<void> {
    await daemon.die();
    await until(() => session.state !== 'connected');
    await daemon.listen();
    await connected();
  }

  it('carries commands on other connections than the events', async () => {
    await session.events.onLifecycle(() => undefined);
    await connected();
    assert.equal(await session.client.version(), 9_000_000);
    assert.equal(daemon.peers.length, 2);
  });

  it('rejects commands at once while it is not connected', async () => {
    await assert.rejects(session.client.version(), (error) => error instanceof ConnectionLostError && !error.sent);
  });

  it('tells of every connection and of its end', async () => {
    await connected();
    await restartDaemon();
    await session.close();
    assert.deepEqual(told, ['connected', 'disconnected', 'connected', 'disconnected']);
    assert.equal(session.state, 'closed');
  });

  it('tells a late listener of the connection that there is', async () => {
    await connected();
    let calls = 0;
    session.onConnected(() => calls++);
    await until(() => calls === 1);
  });

  it('goes on trying while there is no daemon', async () => {
    await connected();
    await daemon.die();
    await until(() => session.state === 'waiting');
    await until(() => session.state === 'connecting');
    await until(() => session.state === 'waiting');
    await daemon.listen();
    await connected();
    assert.equal(await session.client.version(), 9_000_000);
  });

  it('subscribes again before it says that it is connected', async () => {
    const seen: string[] = [];
    await session.events.onLifecycle(({ domain: { name } }) => seen.push(name));
    await connected();
    registered = [];
    const registeredWhenTold: number[] = [];
    session.onConnected(() => registeredWhenTold.push(registered.length));
    await until(() => registeredWhenTold.length === 1);
    await restartDaemon();
    assert.deepEqual(registeredWhenTold, [0, 1]);
    registered[0]!.call.peer.event(eventKinds.lifecycle, started);
    await until(() => seen.length === 1);
  });

  it('asks for each kind of event once, however many listen', async () => {
    await connected();
    const seen: string[] = [];
    const [endFirst] = await Promise.all(
      ['first', 'second'].map((name) => session.events.onLifecycle(() => seen.push(name))),
    );
    assert.equal(registered.length, 1);
    const { peer } = registered[0]!.call;
    peer.event(eventKinds.lifecycle, started);
    await until(() => seen.length === 2);
    endFirst!();
    peer.event(eventKinds.lifecycle, started);
    await until(() => seen.length === 3);
    assert.deepEqual(seen, ['first', 'second', 'second']);
  });

  it('delivers an event that arrives together with the answer to the subscription', async () => {
    await connected();
    daemon.on(procedures.eventRegister, (call) => {
      call.peer.socket.cork();
      call.answer(procedures.eventRegister, 1);
      call.peer.event(eventKinds.lifecycle, started);
      call.peer.socket.uncork();
    });
    const seen: unknown[] = [];
    await session.events.onLifecycle((event) => seen.push(event));
    await until(() => seen.length > 0);
    assert.deepEqual(seen, [started]);
  });

  it('delivers only the QMP events that were asked for', async () => {
    await connected();
    const seen: string[] = [];
    let all = 0;
    await session.events.onQemuMonitorEvent(({ event }) => seen.push(event), 'STOP');
    await session.events.onQemuMonitorEvent(() => all++);
    const [peer] = daemon.peers;
    for (const event of ['RESUME', 'STOP']) {
      peer!.event(eventKinds.monitor, { domain, event, seconds: 1, micros: 2, details: null });
    }
    await until(() => all === 2);
    assert.deepEqual(seen, ['STOP']);
  });

  it('rejects a subscription that the daemon refuses', async () => {
    await connected();
    daemon.on(procedures.eventRegister, (call) => call.refuse({ code: 3, domain: 7, level: 2, text: 'no' }));
    await assert.rejects(
      session.events.onIoError(() => undefined),
      LibvirtError,
    );
    assert.equal(session.state, 'connected');
  });

  it('connects anew when it cannot know whether a subscription was taken', async () => {
    await connected();
    daemon.on(procedures.eventRegister, () => undefined);
    await assert.rejects(session.events.onIoError(() => undefined, 5));
    await until(() => told.length === 3);
    assert.deepEqual(told, ['connected', 'disconnected', 'connected']);
  });

  it('connects anew when it cannot read an event, because one is missed', async () => {
    await session.events.onLifecycle(() => undefined);
    await connected();
    const { program: from, procedure } = eventKinds.lifecycle;
    registered[0]!.call.peer.send({ program: from, procedure, type: 2 }, Buffer.alloc(5));
    await until(() => told.length === 3);
  });

  it('rejects commands in flight when the connection is lost', async () => {
    await connected();
    const calls: FakeCall[] = [];
    daemon.on(procedures.version, (call) => calls.push(call));
    const settled = Promise.allSettled([session.client.version(), session.client.version()]);
    await until(() => calls.length === 2);
    await daemon.die();
    for (const outcome of await settled) {
      assert.ok(outcome.status === 'rejected' && outcome.reason instanceof ConnectionLostError);
    }
  });

  it('closes while the daemon keeps it waiting', async () => {
    await connected();
    await daemon.die();
    daemon.on(procedures.authList, () => undefined);
    await daemon.listen();
    await until(() => daemon.peers.some((peer) => peer.heard.length > 0));
    await session.close();
    await until(() => daemon.peers.length === 0);
  });
});
