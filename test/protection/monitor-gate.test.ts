import assert from 'node:assert/strict';
import { mock } from 'node:test';
import { LibvirtError, libvirtErrorCode } from '../../src/libvirt/errors.ts';
import { MonitorGate } from '../../src/protection/monitor-gate.ts';

const locked = new LibvirtError('domainMonitorCommand', {
  code: libvirtErrorCode.operationTimeout,
  domain: 10,
  level: 2,
  text: 'cannot acquire state change lock',
});

describe("a QEMU's monitor", () => {
  let sent: { request: string; answer: (text: string) => void; fail: (error: Error) => void }[];
  let changes: (string | null)[];
  let gate: MonitorGate;

  beforeEach(() => {
    mock.timers.enable({ apis: ['setTimeout'] });
    sent = [];
    changes = [];
    gate = new MonitorGate(
      (request) => new Promise((answer, fail) => sent.push({ request, answer, fail })),
      () => changes.push(gate.silentSince === null ? 'answers' : 'silent'),
    );
  });

  afterEach(() => mock.timers.reset());

  it('is asked as usual while it answers', async () => {
    const asked = [gate.send('a'), gate.send('b')];
    for (const { request, answer } of sent) answer(`${request}!`);
    assert.deepEqual(await Promise.all(asked), ['a!', 'b!']);
    mock.timers.tick(60_000);
    assert.deepEqual([gate.silentSince, changes], [null, []]);
  });

  it('that does not answer is asked nothing more until it does', async () => {
    const asked = gate.send('a');
    const given = assert.rejects(asked, { code: 'monitor-silent' });
    mock.timers.tick(20_000);
    await given;
    await assert.rejects(gate.send('b'), { code: 'monitor-silent' });
    assert.equal(sent.length, 1);

    sent[0]?.answer('late');
    await new Promise((resolve) => setImmediate(resolve));
    assert.deepEqual(changes, ['silent', 'answers']);
    const again = gate.send('c');
    sent[1]?.answer('c!');
    assert.equal(await again, 'c!');
  });

  it("stays silent while somebody else's command is what it does not answer", async () => {
    const given = assert.rejects(gate.send('a'), { code: 'monitor-silent' });
    mock.timers.tick(20_000);
    await given;
    const since = gate.silentSince;
    for (const call of [0, 1]) {
      sent[call]?.fail(locked);
      await new Promise((resolve) => setImmediate(resolve));
    }
    assert.deepEqual([gate.silentSince, changes, sent.length], [since, ['silent'], 3]);

    sent[2]?.answer('{"return":{}}');
    await new Promise((resolve) => setImmediate(resolve));
    assert.deepEqual([gate.silentSince, changes], [null, ['silent', 'answers']]);
  });

  it('is asked again when the command ended in any other way', async () => {
    const given = assert.rejects(gate.send('a'), { code: 'monitor-silent' });
    mock.timers.tick(20_000);
    await given;
    sent[0]?.fail(new Error('the domain is gone'));
    await new Promise((resolve) => setImmediate(resolve));
    assert.equal(gate.silentSince, null);
  });
});
