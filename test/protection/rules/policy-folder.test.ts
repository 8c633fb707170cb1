import assert from 'node:assert/strict';
import { mkdir, mkdtemp, rename, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { PolicyFolder } from '../../../src/protection/rules/policy-folder.ts';

const rule = (pattern: string): string => `domains = ["${pattern}"]\nmirror = "nbd://s/{domain}"\n`;

describe('the folder of policy files', () => {
  let parent: string;
  let folder: string;
  beforeEach(async () => {
    parent = await mkdtemp(join(tmpdir(), 'virt-cdp-policies-'));
    folder = join(parent, 'policy.d');
  });
  afterEach(() => rm(parent, { recursive: true }));

  const put = (name: string, text: string): Promise<void> => writeFile(join(folder, name), text);
  const fileFor = (policies: PolicyFolder, domain: string): string | undefined =>
    policies.ruleFor(domain)?.file.slice(folder.length + 1);

  it('has the *.toml in it, in the order of their names', async () => {
    await mkdir(folder);
    await put('20-all.toml', rule('*'));
    await put('10-web.toml', rule('web*'));
    await put('00-old.toml.bak', rule('*'));
    await put('.10.toml', rule('*'));
    const policies = new PolicyFolder(folder);
    await policies.read();
    assert.deepEqual([fileFor(policies, 'web1'), fileFor(policies, 'db1')], ['10-web.toml', '20-all.toml']);
    assert.deepEqual(
      policies.files.map(({ problem }) => problem),
      [null, null],
    );
  });

  it('keeps the rule of a file that is broken now, and says so; a file that is gone has none', async () => {
    await mkdir(folder);
    await put('10-web.toml', rule('web*'));
    await put('20-new.toml', 'domains = 1');
    const policies = new PolicyFolder(folder);
    await policies.read();
    await put('10-web.toml', 'domains = ["db*"]\nmirorr = "x"');
    await policies.read();
    assert.equal(fileFor(policies, 'web1'), '10-web.toml');
    assert.equal(fileFor(policies, 'db1'), undefined);
    assert.match(policies.files[0]?.problem ?? '', /10-web\.toml[^]*mirorr/);
    assert.match(policies.files[1]?.problem ?? '', /20-new\.toml[^]*domains/);
    await rm(join(folder, '10-web.toml'));
    await policies.read();
    assert.equal(policies.ruleFor('web1'), null);
  });

  it('may be missing; what is put there and replaced is seen', async () => {
    const policies = new PolicyFolder(folder);
    await policies.read();
    assert.deepEqual(policies.files, []);
    let changed = (): void => undefined;
    const next = async (act: () => Promise<void>): Promise<void> => {
      const seen = new Promise<void>((resolve) => (changed = resolve));
      await act();
      await seen;
    };
    const end = await policies.watch(() => changed());
    try {
      await next(async () => {
        await mkdir(folder);
        await put('a.toml', rule('web*'));
      });
      assert.equal(fileFor(policies, 'web1'), 'a.toml');
      await next(async () => {
        await put('.a.new', rule('db*'));
        await rename(join(folder, '.a.new'), join(folder, 'a.toml'));
      });
      assert.deepEqual([fileFor(policies, 'web1'), fileFor(policies, 'db1')], [undefined, 'a.toml']);
      await next(() => rm(folder, { recursive: true }));
      assert.equal(policies.ruleFor('db1'), null);
    } finally {
      await end();
    }
  });
});
