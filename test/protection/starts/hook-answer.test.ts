import assert from 'node:assert/strict';
import { answerHook } from '../../../src/protection/starts/hook-answer.ts';
import type { DiskRecord, DomainRecord } from '../../../src/protection/record.ts';
import { sameBy } from '../../../src/protection/starts/name-table.ts';
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

  it("by a stranger from a mirror, or from the primary of a domain that runs, is refused; from a stopped one's it goes on", () => {
    const stranger = { name: 'copy', id: '11111111-0000-4000-8000-000000000001' };
    const onMirror = nbdXml.replace('web1', stranger.name).replace(uuid, stranger.id);
    assert.match(start(record.both, onMirror) ?? '', /the mirror of web1's vda.*virt-cdp unprotect web1/);
    const onPrimary = xml({ ...stranger, source: '/primary/vda' });
    assert.match(start(record.both, onPrimary) ?? '', /the primary of web1's vda, which is in use/);
    const stopped = { ...record.both, state: 'stopped' as const };
    assert.equal(start(stopped, onPrimary), null);
  });

  it('from what a contested declaration calls its mirror goes on', () => {
    const contested = { ...record.onlyPrimary, contested: 'it is that of another' };
    const owner = { name: 'owner', id: '11111111-0000-4000-8000-000000000001' };
    assert.equal(start(contested, nbdXml.replace('web1', owner.name).replace(uuid, owner.id)), null);
  });

  it('from an image that is no copy of ours goes on', () =>
    assert.equal(start(record.onlyMirror, xml({ source: '/elsewhere' })), null));

  it('by another way to the same bytes is refused where the way is known', () => {
    const same = sameBy(new Map([['/link', '/primary/vda']]));
    const refuse = answerHook([recordWith(record.onlyMirror)], 'prepare', xml({ source: '//link' }), true, same).refuse;
    assert.match(refuse?.message ?? '', /'\/\/link', is a stale copy/);
  });

  it('from a source that can not be compared is refused while the primary is stale', () => {
    const volume = xml({ source: 'x' })
      .replace("type='file'", "type='volume'")
      .replace("file='x'", "pool='p' volume='x'");
    assert.match(start(record.onlyMirror, volume) ?? '', /can't be told .* 'volume' is not supported.*nbd:\/\/backup1/);
    assert.equal(start(record.onlyPrimary, volume), null);
    const stranger = volume.replace(uuid, '11111111-0000-4000-8000-000000000001');
    assert.equal(start(record.onlyMirror, stranger), null);
    assert.match(start(record.onlyMirror, stranger.replace("volume='x'", "volume='vda'")) ?? '', /bears the name of/);
  });

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
  const primaryXml = xml({ source: '/primary/vda' });
  const savedBy = (instance: string, domainXml: string): string =>
    domainXml.replace(
      '<devices>',
      `<metadata><s:status xmlns:s='https://virt-cdp.org/xmlns/state/1' instance='${instance}'/></metadata><devices>`,
    );
  const judge = (disk: DiskRecord, operation: string, domainXml: string) =>
    answerHook([recordWith(disk)], operation, domainXml, true);

  it('is on the primary when both copies are current, like a start', () => {
    assert.deepEqual(judge(record.both, 'restore', primaryXml), { refuse: null, xml: null });
    assert.equal(judge(record.both, 'restore', nbdXml).xml, primaryXml);
  });

  it('leaves an image that is no copy, such as an overlay', () =>
    assert.deepEqual(judge(record.onlyMirror, 'restore', xml({ source: '/overlay' })), { refuse: null, xml: null }));

  it('of another domain is not given the current copy, on which its owner may run: it is refused', () => {
    const stranger = xml({ name: 'copy', id: '11111111-0000-4000-8000-000000000001', source: '/primary/vda' });
    for (const operation of ['restore', 'migrate']) {
      const { refuse, xml: changed } = judge(record.onlyMirror, operation, stranger);
      assert.equal(changed, null);
      assert.match(refuse?.message ?? '', /^copy can't be (restored|taken in): .* stale copy of web1's vda/);
    }
  });

  it('of the state of the QEMU that last ran goes on; an older state is refused, and what to do is told', () => {
    for (const disk of [record.both, record.onlyMirror]) {
      assert.equal(judge(disk, 'restore', savedBy('boot/1', primaryXml)).refuse, null);
      const { refuse } = judge(disk, 'restore', savedBy('boot/0', primaryXml));
      assert.match(
        refuse?.message ?? '',
        /its saved state is older than its disk vda.*--force-boot web1.*unprotect web1/,
      );
    }
    assert.equal(judge(record.both, 'migrate', savedBy('elsewhere/7', primaryXml)).refuse, null);
    assert.equal(judge({ ...record.both, instance: null }, 'restore', savedBy('boot/0', primaryXml)).refuse, null);
    assert.equal(judge(record.both, 'restore', savedBy('boot/0', xml({ source: '/overlay' }))).refuse, null);
  });

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
