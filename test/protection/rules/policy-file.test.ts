import assert from 'node:assert/strict';
import { imageName } from '../../../src/storage/image.ts';
import { mirrorOf, parsePolicy, ruleFor } from '../../../src/protection/rules/policy-file.ts';

const file = '/etc/virt-cdp/policy.d/10-web.toml';

describe('a policy file', () => {
  it('needs patterns and a mirror, and has defaults', () => {
    assert.deepEqual(parsePolicy('domains = ["web*"]\nmirror = "nbd://storage1/{domain}-{dev}"', file), {
      file,
      domains: ['web*'],
      disks: null,
      mirror: 'nbd://storage1/{domain}-{dev}',
      policy: 'available',
      create: false,
      rebuild: null,
    });
  });

  it('takes every key', () => {
    const toml = `domains = ["web*", "db?"]
      disks = ["vda", "vdb"]
      mirror = "/mnt/nas/{domain}-{dev}.qcow2"
      policy = "strict"
      create = true
      rebuild.to = "/images/{domain}-{dev}-{n}.qcow2"
      rebuild.auto = true`;
    assert.deepEqual(parsePolicy(toml, file), {
      file,
      domains: ['web*', 'db?'],
      disks: ['vda', 'vdb'],
      mirror: '/mnt/nas/{domain}-{dev}.qcow2',
      policy: 'strict',
      create: true,
      rebuild: { to: '/images/{domain}-{dev}-{n}.qcow2', auto: true },
    });
  });

  it('without disks needs no mirror: it excludes domains', () => {
    assert.deepEqual(parsePolicy('domains = ["scratch*"]\ndisks = []', file).mirror, null);
  });

  const mirror = 'mirror = "nbd://s/{domain}"';
  const broken: [toml: string, says: RegExp][] = [
    [mirror, /domains/],
    ['domains = []\n' + mirror, /domains/],
    ['domains = ["*"]', /is missing[^]*mirror/],
    ['domains = ["*"]\ncolour = "red"\n' + mirror, /Unrecognized key: "colour"/],
    ['domains = ["*"]\nrebuild.when = 1\n' + mirror, /rebuild/],
    ['domains = ["*"]\nmirror = "nbd://s/{disk}"', /\{disk\}[^]*mirror/],
    ['domains = ["*"]\nmirror = "ftp://s/{domain}"', /ftp[^]*mirror/],
    ['domains = ["*"]\nmirror = "images/{domain}"', /mirror/],
    ['domains = ["*"]\ncreate = true\n' + mirror, /files can be created[^]*create/],
    ['domains = ["*"]\npolicy = "best"\n' + mirror, /policy/],
    ['domains = ["*"]\ndisks = ["../vda"]\n' + mirror, /disks/],
    ['domains = ', /1: {2}domains/],
  ];
  for (const [toml, says] of broken) {
    it(`is refused if it says ${JSON.stringify(toml)}, with its name and the key's`, () => {
      assert.throws(
        () => parsePolicy(toml, file),
        (error: Error) => error.message.includes(file) && says.test(error.message),
      );
    });
  }
});

describe('the rule for a domain', () => {
  const rule = (name: string, ...domains: string[]) =>
    parsePolicy(`domains = ${JSON.stringify(domains)}\nmirror = "nbd://s/{domain}-{dev}"`, name);

  it('is the first whose pattern fits the whole name; * is any text, ? one character, everything else itself', () => {
    const rules = [rule('a', 'web?', 'x.y'), rule('b', 'web*', 'db[1]*'), rule('c', '*-prod')];
    const files = [
      'web1',
      'web12',
      'web',
      'aweb1',
      'x.y',
      'xzy',
      'db[1]',
      'db1',
      'shop-prod',
      'web-prod',
      'Web1',
      'web€',
    ];
    assert.deepEqual(
      files.map((name) => ruleFor(rules, name)?.file ?? null),
      ['a', 'b', 'b', null, 'a', null, 'b', null, 'c', 'b', null, 'a'],
    );
  });

  it('names a mirror by its template; in a URI the name is encoded', () => {
    assert.equal(imageName(mirrorOf('/m/{domain}-{dev}.raw', 'a b$&', 'vda')), '/m/a b$&-vda.raw');
    const { source } = mirrorOf('nbd://s/{domain}/{dev}', 'a b?', 'sda');
    assert.deepEqual(source.kind === 'nbd' && source.exportName, 'a b?/sda');
  });
});
