import assert from 'node:assert/strict';
import { answerHook } from '../../../src/protection/starts/hook-answer.ts';
import type { DiskRecord, DomainRecord } from '../../../src/protection/record.ts';
import { parseImageUri } from '../../../src/storage/image.ts';
import { look, record } from '../observations.ts';

const uuid = '8a2f0b4e-0000-4000-8000-000000000001';

function recordWith(disk: DiskRecord, policy: DomainRecord['policy'] = 'available'): DomainRecord {
  return { ...look({ record: disk }, { policy }).record, uuid };
}

function xml({ name = 'web1', id = uuid, source }: { name?: string; id?: string; source: string }): string {
  return `<domain type='kvm'><name>${name}</name><uuid>${id}</uuid><devices>
    <disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='${source}'/><target dev='vda' bus='virtio'/></disk>
  </devices></domain>`;
}

const nbdXml = xml({ source: 'x' }).replace(
  "<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='x'/>",
  "<disk type='network' device='disk'><driver name='qemu' type='raw'/><source protocol='nbd' name='vda'><host name='backup1' port='10809'/></source>",
);

const start = (
  disk: DiskRecord,
  domainXml: string,
  { policy, agentIsUp = true }: { policy?: DomainRecord['policy']; agentIsUp?: boolean } = {},
): string | null => answerHook([recordWith(disk, policy)], 'prepare', domainXml, agentIsUp).refuse?.message ?? null;

describe('a start', () => {
  it('from a current copy goes on', () => {
    assert.equal(start(record.both, xml({ source: '/primary/vda' })), null);
    assert.equal(start(record.onlyPrimary, xml({ source: '/primary/vda' })), null);
    assert.equal(start(record.onlyMirror, nbdXml), null);
  });

  it('from a stale copy is refused, whoever asks, and the current one is named', () => {
    const message = start(record.onlyMirror, xml({ source: '/primary/vda' }));
    assert.match(message ?? '', /stale copy of web1's vda.*nbd:\/\/backup1.*virt-cdp start web1/);
    assert.match(start(record.onlyPrimary, nbdXml) ?? '', /'\/primary\/vda'/);
    const stranger = xml({
      name: 'copy',
      id: '11111111-0000-4000-8000-000000000001',
      source: '/primary/../primary//vda',
    });
    assert.match(start(record.onlyMirror, stranger) ?? '', /^copy can't start/);
  });

  it('from a primary of former days is refused', () => {
    const retired = { ...record.both, retired: [parseImageUri('/former/vda')] };
    assert.match(start(retired, xml({ source: '/former/vda' })) ?? '', /stale copy .* current one is '\/primary\/vda'/);
  });

  it('from the mirror is refused while the primary is current too: the definition is behind', () => {
    assert.match(start(record.both, nbdXml) ?? '', /names the mirror of vda.*virt-cdp start web1/);
  });

  it('from an image that is no copy of ours goes on', () =>
    assert.equal(start(record.onlyMirror, xml({ source: '/elsewhere' })), null));

  it('with policy strict needs the agent, and a mirror that was not lost', () => {
    const source = xml({ source: '/primary/vda' });
    const unreachable = { ...record.onlyPrimary, mirror: { ...record.onlyPrimary.mirror, reachable: false } };
    assert.match(start(record.both, source, { policy: 'strict', agentIsUp: false }) ?? '', /the agent does not answer/);
    assert.match(start(unreachable, source, { policy: 'strict' }) ?? '', /last seen out of reach/);
    assert.equal(start(unreachable, source), null);
    assert.equal(start(record.both, source, { policy: 'strict' }), null);
  });
});

describe('a restore or a migration', () => {
  it('goes on with the current copy, and nothing else in the XML changes', () => {
    const { refuse, xml: changed } = answerHook(
      [recordWith(record.onlyMirror)],
      'restore',
      xml({ source: '/primary/vda' }),
      true,
    );
    assert.equal(refuse, null);
    assert.equal(changed, nbdXml);
    assert.equal(answerHook([recordWith(record.both)], 'migrate', xml({ source: '/primary/vda' }), true).xml, null);
  });
});
