import assert from 'node:assert/strict';
import fc from 'fast-check';
import { DECLARATION_URI, declarationFromXml } from '../../src/domain/declaration.ts';
import { parseDomain } from '../../src/domain/domain.ts';
import { UsageError } from '../../src/errors.ts';
import { mirrorOf, parsePolicy, ruleFor } from '../../src/protection/rules/policy-file.ts';
import { pathOf } from '../../src/storage/path.ts';

const bounded = { numRuns: 400, interruptAfterTimeLimit: 3_000 };

/** What was written by others is taken, or refused in words for users; it never does anything else. */
describe('hostile input', () => {
  function takenOrRefused(work: () => unknown): void {
    try {
      work();
    } catch (error) {
      assert.ok(error instanceof UsageError, String(error));
      assert.ok(error.message.length < 10_000, `${error.message.length} characters`);
    }
  }

  const names = [
    'domain',
    'name',
    'uuid',
    'metadata',
    'devices',
    'disk',
    'source',
    'driver',
    'target',
    'address',
    'auth',
  ];
  const attributes = [
    'type',
    'device',
    'file',
    'dev',
    'bus',
    'protocol',
    'name',
    'xmlns',
    'xmlns:cdp',
    'policy',
    'index',
  ];
  const values = fc.oneof(
    fc.constantFrom('file', 'network', 'virtio', 'vda', '/a', DECLARATION_URI, '-1', '1e999', '../..', '&#0;', '&x;'),
    fc.string({ maxLength: 20 }),
  );
  const attribute = fc.tuple(fc.constantFrom(...attributes), values).map(([name, value]) => ` ${name}="${value}"`);
  const { element } = fc.letrec<{ element: string }>((tie) => ({
    element: fc
      .tuple(
        fc.constantFrom(...names, 'cdp:protection', 'cdp:disk', 'cdp:mirror', '!--', '![CDATA[', '?xml'),
        fc.array(attribute, { maxLength: 3 }),
        fc.array(fc.oneof({ depthSize: 'small' }, fc.string({ maxLength: 10 }), tie('element')), { maxLength: 3 }),
      )
      .map(([name, given, inner]) => `<${name}${given.join('')}>${inner.join('')}</${name}>`),
  }));

  it("as the hook's XML", () => {
    fc.assert(
      fc.property(fc.array(element, { maxLength: 3 }), (inner) => {
        takenOrRefused(() => parseDomain(`<domain><name>a</name>${inner.join('')}</domain>`));
      }),
      bounded,
    );
    const deep = '<a>'.repeat(100_000);
    for (const xml of [
      deep,
      `<!DOCTYPE d [<!ENTITY x "${'y'.repeat(99)}">]><domain><name>&x;</name></domain>`,
      '\0',
      '',
    ])
      takenOrRefused(() => parseDomain(xml));
  });

  it('as metadata', () => {
    fc.assert(
      fc.property(fc.array(element, { maxLength: 3 }), values, (inner, policy) => {
        const xml = `<cdp:protection xmlns:cdp="${DECLARATION_URI}" policy="${policy}">${inner.join('')}</cdp:protection>`;
        takenOrRefused(() => declarationFromXml(xml));
      }),
      bounded,
    );
  });

  const keys = fc.constantFrom(
    'domains',
    'disks',
    'mirror',
    'policy',
    'create',
    'rebuild.to',
    'rebuild.auto',
    '__proto__',
    'x',
  );
  const tomlValues = fc.oneof(
    fc.constantFrom(
      '["*"]',
      '[]',
      '"/m/{domain}-{dev}"',
      '"nbd://s/{domain}"',
      'true',
      '"strict"',
      '[["a"]]',
      '1979-05-27',
      '{}',
    ),
    fc.string({ maxLength: 20 }),
    fc.string({ unit: 'binary', maxLength: 20 }).map((text) => JSON.stringify(text)),
  );

  it('as a policy file', () => {
    fc.assert(
      fc.property(fc.array(fc.tuple(keys, tomlValues), { maxLength: 6 }), values, (lines, domain) => {
        takenOrRefused(() => {
          const rule = parsePolicy(lines.map(([key, value]) => `${key} = ${value}\n`).join(''), '/p.toml');
          if (ruleFor([rule], domain) === rule && rule.mirror !== null) mirrorOf(rule.mirror, domain, 'vda');
        });
      }),
      bounded,
    );
  });

  it('as a pattern with many stars comes to an end', () => {
    const rule = parsePolicy(`domains = ["${'*a'.repeat(200)}b"]\nmirror = "/m/{domain}"\n`, '/p.toml');
    assert.equal(ruleFor([rule], 'a'.repeat(5000)), null);
  });

  it('as a name of a domain leads to no other folder', () => {
    const name = fc.oneof(values, fc.string({ unit: fc.constantFrom('.', '/', 'a', '%', '2', 'e', 'f') }));
    fc.assert(
      fc.property(name, (domain) => {
        takenOrRefused(() => {
          const path = pathOf(mirrorOf('/m/{domain}/{dev}', domain, 'vda')) ?? '';
          assert.deepEqual(path.split('/').length, 4, path);
          assert.ok(!path.split('/').includes('..'), path);
        });
      }),
      bounded,
    );
  });
});
