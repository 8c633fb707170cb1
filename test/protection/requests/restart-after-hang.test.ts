import assert from 'node:assert/strict';
import { tmpdir } from 'node:os';
import type { Engine } from '../../../src/graph/engine.ts';
import { DiskMemory } from '../../../src/protection/disk-memory.ts';
import type { Host } from '../../../src/protection/host.ts';
import type { Side } from '../../../src/protection/model.ts';
import type { Protector } from '../../../src/protection/protector.ts';
import type { DiskRecord } from '../../../src/protection/record.ts';
import { restartAfterHang } from '../../../src/protection/requests/restart-after-hang.ts';
import { parseImageUri } from '../../../src/storage/image.ts';
import { ImageOpener } from '../../../src/storage/opener.ts';
import { record } from '../observations.ts';

interface Case {
  policy: 'available' | 'strict';
  onHang: 'wait' | 'restart';
  persistent: boolean;
  disks: DiskRecord[];
  /** The mirror of vda was left before. */
  left: { engine: Engine; withoutStopPolicy: string | null } | null;
}

const nowhere = parseImageUri('nbd://127.0.0.1:1/gone');
const there = parseImageUri(`file:${process.execPath}`);

/** A disk with a copy that would answer, and one that does not. */
function disk(dev: string, answers: Side, of: DiskRecord): DiskRecord {
  const other = answers === 'primary' ? 'mirror' : 'primary';
  return { ...of, dev, [answers]: { ...of[answers], image: there }, [other]: { ...of[other], image: nowhere } };
}

/** Whether QEMU is killed for vda's primary, that hangs for longer than anybody is to wait; asked twice. */
async function kills({ policy, onHang, persistent, disks, left }: Case): Promise<{ killed: boolean; told: string[] }> {
  let killed = false;
  const client = {
    isPersistent: () => Promise.resolve(persistent),
    destroy: () => {
      killed = true;
      return Promise.reject(new Error('enough is seen'));
    },
  };
  const told: string[] = [];
  const memory = new DiskMemory();
  memory.yanked.mirror = left !== null;
  const protector = {
    live: { ref: { name: 'web1', uuid: 'u', id: 1 } },
    record: { name: 'web1', policy, disks },
    observation: { disks: disks.map((seen) => ({ record: seen, ...left })) },
    memoryOf: () => memory,
    note: (event: string, dev: string, { error, restarts }: Record<string, unknown>) =>
      told.push(`${event} ${dev}: ${String(error ?? restarts)}`),
  };
  const host = {
    session: { client },
    config: () => ({ onHang, mirror: { timeoutMs: 5_000 } }),
    opener: new ImageOpener({
      readSecret: () => Promise.reject(new Error('there is none')),
      timeoutMs: () => 1_000,
      folder: tmpdir(),
      certificates: () => Promise.resolve('/pki'),
    }),
    definition: () => Promise.resolve({ domain: { disks: [] } }),
  };
  for (let times = 0; times < 2 && told[0] !== 'hang vda: true'; times++)
    await restartAfterHang(protector as unknown as Protector, 'vda', 'primary', host as unknown as Host);
  return { killed, told };
}

describe('a guest that waits for a copy that hangs, which QEMU can not let go of', () => {
  const pair = disk('vda', 'mirror', record.both);
  const rebooted: Case = { policy: 'available', onHang: 'restart', persistent: true, disks: [pair], left: null };
  const vdb = disk('vdb', 'mirror', record.both);
  const gone = { ...vdb, mirror: { ...vdb.mirror, image: nowhere } };
  const quorum = { engine: 'quorum', withoutStopPolicy: null } as const;

  it('is killed where the configuration says so', async () => {
    for (const left of [null, quorum]) {
      const { killed, told } = await kills({ ...rebooted, left });
      assert.ok(killed);
      assert.equal(told[0], 'hang vda: true');
    }
  });

  const spared: [string, Partial<Case>][] = [
    ['by default', { onHang: 'wait' }],
    ['with policy strict, for which the other copy alone is not enough', { policy: 'strict' }],
    ['if it is transient, and would be gone with its QEMU', { persistent: false }],
  ];
  for (const [when, part] of spared)
    it(`waits on ${when}`, async () =>
      assert.deepEqual(await kills({ ...rebooted, ...part }), { killed: false, told: [] }));

  const unstartable: [string, Partial<Case>, RegExp][] = [
    ['another disk could not be started: no copy answers', { disks: [pair, gone] }, /no copy of disk vdb answers/],
    [
      'another disk could not be started: only a stale copy answers',
      { disks: [pair, disk('vdb', 'mirror', record.onlyPrimary)] },
      /disk vdb: only the stale copy/,
    ],
    [
      'the mirror was left while a mirror job wrote to it',
      { left: { ...quorum, engine: 'mirror' } },
      /disk vda: the mirror was left/,
    ],
    [
      'the mirror was left, and the guest was not paused for that',
      { left: { ...quorum, withoutStopPolicy: 'told' } },
      /disk vda: the mirror was left/,
    ],
  ];
  for (const [why, part, told] of unstartable)
    it(`waits on if ${why}, told once`, async () => {
      const outcome = await kills({ ...rebooted, ...part });
      assert.equal(outcome.killed, false);
      assert.equal(outcome.told.length, 1);
      assert.match(outcome.told[0] ?? '', told);
    });
});
