import assert from 'node:assert/strict';
import type { Host } from '../../../src/protection/host.ts';
import type { Protector } from '../../../src/protection/protector.ts';
import { restartAfterHang } from '../../../src/protection/requests/restart-after-hang.ts';

interface Case {
  policy: 'available' | 'strict';
  onHang: 'wait' | 'restart';
  persistent: boolean;
}

/** Whether QEMU is killed for a copy that hangs for longer than anybody is to wait. */
async function kills({ policy, onHang, persistent }: Case): Promise<boolean> {
  let destroyed = false;
  const client = {
    isPersistent: () => Promise.resolve(persistent),
    destroy: () => {
      destroyed = true;
      return Promise.reject(new Error('enough is seen'));
    },
  };
  const told: Record<string, unknown>[] = [];
  const protector = {
    live: { ref: { name: 'web1', uuid: 'u', id: 1 } },
    record: { policy },
    note: (event: string, dev: string, detail: Record<string, unknown>) => told.push({ event, dev, ...detail }),
  };
  const host = { session: { client }, config: () => ({ onHang }) };
  await restartAfterHang(protector as unknown as Protector, 'vda', 'primary', host as unknown as Host);
  assert.equal(told.length > 0, destroyed, 'it is told, and nothing else is');
  return destroyed;
}

describe('a guest that waits for a copy that hangs, which QEMU can not let go of', () => {
  const rebooted: Case = { policy: 'available', onHang: 'restart', persistent: true };

  it('is killed where the configuration says so', async () => assert.ok(await kills(rebooted)));

  const spared: [string, Partial<Case>][] = [
    ['by default', { onHang: 'wait' }],
    ['with policy strict, for which the other copy alone is not enough', { policy: 'strict' }],
    ['if it is transient, and would be gone with its QEMU', { persistent: false }],
  ];
  for (const [when, part] of spared)
    it(`waits on ${when}`, async () => assert.ok(!(await kills({ ...rebooted, ...part }))));
});
