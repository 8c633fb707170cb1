import assert from 'node:assert/strict';
import { declarationToXml, DECLARATION_URI, type Declaration } from '../../../src/domain/declaration.ts';
import { parseDomain, type Domain } from '../../../src/domain/domain.ts';
import type { Image } from '../../../src/domain/image.ts';
import { imageToDiskXml } from '../../../src/domain/disk-image.ts';
import { compare, type Comparison } from '../../../src/protection/definitions/compare.ts';
import { followDefinition } from '../../../src/protection/definitions/follow.ts';
import type { Followed, Protector } from '../../../src/protection/protector.ts';
import { newDiskRecord, type DiskRecord, type DomainRecord } from '../../../src/protection/record.ts';
import { parseImageUri } from '../../../src/storage/image.ts';
import { look } from '../observations.ts';

const image = (path: string): Image => parseImageUri(path);

/** A disk whose copies are both current. */
function pair(dev: string, parts: Partial<DiskRecord> = {}): DiskRecord {
  const disk = newDiskRecord({ dev, mirror: image(`/m/${dev}`), rebuild: null }, image(`/p/${dev}`), false);
  return { ...disk, mirror: { ...disk.mirror, current: true }, state: 'stopped', ...parts };
}

function failedOver(dev: string): DiskRecord {
  const disk = pair(dev);
  return { ...disk, primary: { ...disk.primary, current: false }, retired: [image(`/former/${dev}`)] };
}

const record = (...disks: DiskRecord[]): DomainRecord => ({ ...look().record, disks });

interface Defined {
  name?: string;
  /** By target. */
  sources: Record<string, string>;
  declaration: Declaration | null;
  stopPolicy?: boolean;
}

function definition({ name = 'web1', sources, declaration, stopPolicy = true }: Defined): Domain {
  const driver = stopPolicy ? "<driver name='qemu' type='raw' error_policy='stop' rerror_policy='stop'/>" : '';
  const disks = Object.entries(sources).map(([dev, path]) =>
    imageToDiskXml(image(path))
      .replace(/<driver[^>]*\/>/, driver)
      .replace('</disk>', `<target dev='${dev}' bus='virtio'/></disk>`),
  );
  const declared =
    declaration === null
      ? ''
      : `<metadata>${declarationToXml(declaration).replace('<protection', `<protection xmlns='${DECLARATION_URI}'`)}</metadata>`;
  return parseDomain(
    `<domain type='kvm'><name>${name}</name><uuid>${look().record.uuid}</uuid>${declared}<devices>${disks.join('')}</devices></domain>`,
  );
}

const declares = (mirrors: Record<string, string>, policy: Declaration['policy'] = 'available'): Declaration => ({
  policy,
  disks: Object.entries(mirrors).map(([dev, path]) => ({ dev, mirror: image(path), rebuild: null })),
});

const whole = { vda: '/m/vda', vdb: '/m/vdb' };
const sources = { vda: '/p/vda', vdb: '/p/vdb' };

/** Copies and which of them are current are never taken from a definition. */
function assertCopiesKept(before: DomainRecord, { record: after }: Comparison): void {
  const copies = ({ disks }: DomainRecord): unknown => disks.map(({ primary, mirror }) => ({ primary, mirror }));
  assert.deepEqual(copies(after), copies(before));
}

describe('a definition that somebody wrote', () => {
  const both = record(pair('vda'), pair('vdb'));

  it('as it was leads to nothing', () => {
    const {
      record: after,
      added,
      remarks,
      notes,
      restoration,
    } = compare(both, definition({ sources, declaration: declares(whole) }), null);
    assert.equal(after, both);
    assert.deepEqual([added, [...remarks], notes, restoration], [[], [], [], null]);
  });

  it('without one of two disks in its declaration gets it back, and both stay protected', () => {
    const found = compare(both, definition({ sources, declaration: declares({ vda: '/m/vda' }) }), null);
    assertCopiesKept(both, found);
    assert.deepEqual(
      found.restoration?.declaration?.disks.map(({ dev }) => dev),
      ['vda', 'vdb'],
    );
    assert.deepEqual(found.restoration.what, ['the declaration of vdb']);
  });

  it('without declaration and stop policy gets both back, running or not', () => {
    const bare = definition({ sources, declaration: null, stopPolicy: false });
    for (const running of [null, { disks: bare.disks, attached: true }]) {
      const found = compare(both, bare, running);
      assertCopiesKept(both, found);
      assert.deepEqual(found.restoration?.what, [
        'the declaration of vda, vdb',
        "error_policy='stop' of vda",
        "error_policy='stop' of vdb",
      ]);
    }
  });

  it('with another policy is followed, and that is told', () => {
    const found = compare(both, definition({ sources, declaration: declares(whole, 'strict') }), null);
    assertCopiesKept(both, found);
    assert.equal(found.record.policy, 'strict');
    assert.deepEqual(
      found.notes.map(({ event }) => event),
      ['policy-changed'],
    );
  });

  it('with another mirror is not followed, and that is told', () => {
    const found = compare(both, definition({ sources, declaration: declares({ ...whole, vda: '/m/new' }) }), null);
    assertCopiesKept(both, found);
    assert.match(found.remarks.get('vda') ?? '', /declares another mirror, '\/m\/new', which is not used/);
  });

  const outOfDate: [string, DomainRecord, Record<string, string>, string][] = [
    ['the stale primary', record(failedOver('vda')), { vda: '/p/vda' }, '/m/vda'],
    ['a primary of former days', record(failedOver('vda')), { vda: '/former/vda' }, '/m/vda'],
    ['the mirror while the primary is current', record(pair('vda')), { vda: '/m/vda' }, '/p/vda'],
  ];
  for (const [what, before, named, right] of outOfDate) {
    it(`that names ${what} names the current copy again when the domain does not run`, () => {
      const defined = definition({ sources: named, declaration: declares({ vda: '/m/vda' }) });
      const found = compare(before, defined, null);
      assertCopiesKept(before, found);
      assert.deepEqual(found.restoration?.what, [`the source of vda: ${right}`]);
      const before_ = `<domain><devices>${imageToDiskXml(image(named['vda'] ?? '')).replace('</disk>', "<target dev='vda'/></disk>")}</devices></domain>`;
      assert.ok(found.restoration.edit(before_).includes(right));
    });
  }

  it('that names an image that is none of its copies is left so, and that is told', () => {
    const before = record(failedOver('vda'));
    const foreign = definition({ sources: { vda: '/elsewhere' }, declaration: declares({ vda: '/m/vda' }) });
    const found = compare(before, foreign, null);
    assert.equal(found.restoration, null);
    assert.match(found.remarks.get('vda') ?? '', /its next start is from '\/elsewhere', which is none of its copies/);
  });

  it('with its disks swapped is followed by their images when nothing is under way, and not before', () => {
    const swapped = definition({ sources: { vda: '/p/vdb', vdb: '/p/vda' }, declaration: declares(whole) });
    const stopped = compare(both, swapped, null);
    assert.deepEqual(
      stopped.record.disks.map(({ dev, primary: { image: primary } }) => [dev, primary.source]),
      [
        ['vdb', image('/p/vda').source],
        ['vda', image('/p/vdb').source],
      ],
    );
    const running = compare(both, swapped, { disks: definition({ sources, declaration: null }).disks, attached: true });
    assert.deepEqual(
      running.record.disks.map(({ dev }) => dev),
      ['vda', 'vdb'],
    );
    assert.match(running.remarks.get('vda') ?? '', /none of its copies/);
  });

  it('without the disk keeps its record, and says how to end the protection', () => {
    const found = compare(both, definition({ sources: { vda: '/p/vda' }, declaration: declares(whole) }), null);
    assertCopiesKept(both, found);
    assert.match(found.remarks.get('vdb') ?? '', /no disk vdb any more; virt-cdp unprotect web1 --disk vdb/);
  });

  it('that calls the domain otherwise renames its record', () => {
    const found = compare(both, definition({ name: 'shop', sources, declaration: declares(whole) }), null);
    assertCopiesKept(both, found);
    assert.equal(found.record.name, 'shop');
    assert.equal(found.notes[0]?.event, 'renamed');
  });
});

describe('a definition that declares one mirror for two of its disks', () => {
  it('gives it to one; the other is never armed, says why, and says it after a restart of the agent too', async () => {
    const domain = definition({ sources, declaration: declares({ vda: '/m/one', vdb: '/m/one' }) });
    const ref = { name: 'web1', uuid: domain.uuid, id: -1 };
    let kept = record();
    for (const life of ['first', 'second']) {
      const followed: (Followed | null)[] = [];
      const protector = {
        live: null,
        get record() {
          return kept;
        },
        gone: false,
        follow: async (work: Parameters<Protector['follow']>[0]) => {
          followed.push(
            await work(kept, (changed) => {
              kept = changed;
              return Promise.resolve();
            }),
          );
        },
      } as unknown as Protector;
      const definitions = {
        read: () => Promise.resolve({ ref, domain }),
        compare: (before: DomainRecord) => Promise.resolve(compare(before, domain, null)),
      };
      const host = {
        session: { client: { listDomains: () => Promise.resolve([ref]) } },
        definitions,
        protectors: () => [protector],
        claiming: <T>(work: () => Promise<T>) => work(),
      };
      await followDefinition(host as never, protector);
      assert.ok(followed.at(-1) != null, life);
      assert.deepEqual(
        kept.disks.map(({ dev, contested }) => [dev, contested === null]),
        [
          ['vda', true],
          ['vdb', false],
        ],
        life,
      );
      assert.match(kept.disks[1]?.contested ?? '', /'\/m\/one' is that of the domain's own disk vda already/);
    }
  });
});
