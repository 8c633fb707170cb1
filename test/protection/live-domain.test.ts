import assert from 'node:assert/strict';
import type { LibvirtSession } from '../../src/libvirt/session.ts';
import { LiveDomain } from '../../src/protection/live-domain.ts';

describe('since when a guest stands still', () => {
  let domain: LiveDomain;
  let since: () => number;

  beforeEach(() => {
    const session = { socketPath: '', clientFor: (stillSinceMs: () => number) => void (since = stillSinceMs) };
    const ref = { name: 'web1', uuid: '00000000-0000-4000-8000-000000000001', id: 1 };
    domain = new LiveDomain(session as unknown as LibvirtSession, ref, {} as never, () => undefined);
  });

  const stopAt = (timeMs: number): void => domain.deliver({ event: 'STOP', timeMs, data: {} });

  it('is told by QEMU, and not put later by a look', () => {
    stopAt(1);
    domain.seen('surgery');
    domain.seen('io-error');
    assert.equal(since(), 1);
    domain.deliver({ event: 'RESUME', timeMs: 2, data: {} });
    assert.equal(since(), Infinity);
  });

  it('is found by a look where the event was not heard', () => {
    domain.seen('io-error');
    assert.ok(since() <= Date.now());
    domain.seen('running');
    assert.equal(since(), Infinity);
  });

  it('does not count while somebody wants it suspended', () => {
    stopAt(1);
    domain.seen('suspended');
    assert.equal(since(), Infinity);
  });
});
