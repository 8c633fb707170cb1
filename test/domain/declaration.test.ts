import assert from 'node:assert/strict';
import fc from 'fast-check';
import {
  DECLARATION_KEY,
  DECLARATION_URI,
  declarationFromXml,
  declarationToXml,
  policies,
  type Declaration,
} from '../../src/domain/declaration.ts';
import { parseDomain } from '../../src/domain/domain.ts';
import { withMetadata } from '../../src/domain/edit.ts';
import { imageFormats, textProblem } from '../../src/domain/image.ts';
import { STATUS_KEY, STATUS_URI, statusFromXml, statusToXml, type LiveStatus } from '../../src/domain/live-status.ts';
import { CdpError, UsageError } from '../../src/errors.ts';
import { anyImage } from '../storage/images.ts';
import { domainXml, virsh } from './fixtures.ts';

const plain = { noNullPrototype: true };
const anyText = fc
  .string({ unit: 'grapheme', minLength: 1, maxLength: 30 })
  .filter((text) => textProblem(text) === null);
const anyDev = fc.stringMatching(/^[a-z]{1,4}[0-9]?$/);

const anyDeclaration: fc.Arbitrary<Declaration> = fc.record(
  {
    policy: fc.constantFrom(...policies),
    disks: fc.uniqueArray(
      fc
        .tuple(
          fc.record(
            {
              dev: anyDev,
              mirror: anyImage,
              rebuild: fc.option(
                fc.record({ to: anyText, format: fc.constantFrom(...imageFormats), auto: fc.boolean() }, plain),
              ),
            },
            plain,
          ),
          fc.option(
            fc.record(
              {
                errorPolicy: fc.constantFrom(null, 'stop', 'report', 'ignore', 'enospace'),
                readErrorPolicy: fc.constantFrom(null, 'stop', 'report', 'ignore'),
              },
              plain,
            ),
          ),
        )
        .map(([disk, previous]) => ({ ...disk, ...(previous !== null && { previousErrorPolicy: previous }) })),
      { minLength: 1, maxLength: 3, selector: ({ dev }) => dev },
    ),
  },
  plain,
);

const nbd: Declaration = {
  policy: 'available',
  disks: [
    {
      dev: 'vda',
      mirror: {
        source: { kind: 'nbd', server: { host: 'storage1', port: 10809 }, exportName: "it's <&>" },
        format: 'raw',
      },
      rebuild: { to: '/srv/{domain}-{dev}-{n}.qcow2', format: 'qcow2', auto: false },
      previousErrorPolicy: { errorPolicy: 'report', readErrorPolicy: null },
    },
  ],
};

describe('a declaration', () => {
  it('is read back as it was written', () => {
    fc.assert(
      fc.property(anyDeclaration, (declaration) => {
        assert.deepEqual(declarationFromXml(declarationToXml(declaration)), declaration);
      }),
    );
  });

  it('is read back from a domain into whose XML it was put', () => {
    fc.assert(
      fc.property(anyDeclaration, (declaration) => {
        const xml = withMetadata(
          domainXml('virt-install.xml'),
          DECLARATION_URI,
          DECLARATION_KEY,
          declarationToXml(declaration),
        );
        assert.deepEqual(parseDomain(xml).declaration, declaration);
      }),
      { numRuns: 30 },
    );
  });

  it('survives libvirt: virDomainSetMetadata, virDomainGetMetadata and the domain XML', function () {
    const quoted = `"${declarationToXml(nbd).replaceAll('"', '\\"')}"`;
    const set = `metadata test ${DECLARATION_URI} --key ${DECLARATION_KEY} --set ${quoted}`;
    const got = virsh(set, `metadata test ${DECLARATION_URI}`);
    if (got === null) return this.skip();
    assert.equal(got.stderr, '');
    assert.deepEqual(declarationFromXml(got.stdout.slice(got.stdout.indexOf('<'))), nbd);
    const dumped = virsh(set, 'dumpxml test')?.stdout ?? '';
    assert.match(dumped, /<cdp:protection xmlns:cdp="https:\/\/virt-cdp.org\/xmlns\/domain\/1" policy="available">/);
    assert.deepEqual(parseDomain(dumped.slice(dumped.indexOf('<domain'))).declaration, nbd);
  });

  const disk = "<disk type='file'><driver name='qemu' type='raw'/><source file='/m.img'/></disk>";
  const forms: [what: string, xml: string][] = [
    [
      'as documented',
      `<cdp:protection xmlns:cdp='${DECLARATION_URI}'><cdp:disk dev='vda'><cdp:mirror>${disk}</cdp:mirror></cdp:disk></cdp:protection>`,
    ],
    [
      'with another prefix',
      `<x:protection xmlns:x='${DECLARATION_URI}'><x:disk dev='vda'><x:mirror>${disk}</x:mirror></x:disk></x:protection>`,
    ],
    [
      'with a default namespace',
      `<protection xmlns='${DECLARATION_URI}'><disk dev='vda'><mirror>${disk}</mirror></disk></protection>`,
    ],
  ];
  for (const [what, xml] of forms) {
    it(`is read ${what}`, () => {
      assert.deepEqual(declarationFromXml(xml), {
        policy: 'available',
        disks: [{ dev: 'vda', mirror: { source: { kind: 'file', path: '/m.img' }, format: 'raw' }, rebuild: null }],
      });
    });
  }

  const one = (inner: string, policy = "policy='strict'"): string => `<protection ${policy}>${inner}</protection>`;
  const vda = (more = ''): string => `<disk dev='vda'><mirror>${disk}</mirror>${more}</disk>`;
  const invalid: [xml: string, says: RegExp][] = [
    ['', /empty/],
    ['<protection', /could not be read/],
    ['<other/>', /root is <other>/],
    ["<protection xmlns='urn:x'/>", /root is <protection>/],
    [one(''), /no <disk>/],
    [one(vda(), "policy='maybe'"), /policy='maybe' is not one of available, strict/],
    [one(vda(), "polcy='strict'"), /unknown attribute 'polcy'/],
    [one(`${vda()}<mirror/>`), /unknown element <mirror>/],
    [one(`${vda()}${vda()}`), /vda twice/],
    [one("<disk dev='vda'/>"), /no <mirror>/],
    [one('<disk/>'), /no usable dev/],
    [one("<disk dev='../x'/>"), /no usable dev/],
    [one("<disk dev='vda'><mirror/></disk>"), /exactly one <disk>/],
    [one(vda(`<mirror>${disk}</mirror>`)), /more than one <mirror>/],
    [
      one("<disk dev='vda'><mirror><disk type='volume'><source pool='p'/></disk></mirror></disk>"),
      /'volume' is not supported/,
    ],
    [one(vda('<rebuild/>')), /no to=/],
    [one(vda("<rebuild to='/a' format='vmdk'/>")), /format='vmdk'/],
    [one(vda("<rebuild to='/a' auto='true'/>")), /auto='true'/],
    [one(vda("<rebuild to='/a&#9;b'/>")), /control characters/],
    [one(vda("<previous error_policy='panic'/>")), /error_policy='panic'/],
  ];
  for (const [xml, says] of invalid) {
    it(`is refused, naming what is wrong: ${String(says)}`, () => {
      assert.throws(
        () => declarationFromXml(xml),
        (error) => error instanceof UsageError && error.code === 'declaration-invalid' && says.test(error.message),
      );
    });
  }

  it('throws nothing but UsageError, whatever it reads', () => {
    const text = declarationToXml(nbd);
    const mutated = fc
      .tuple(fc.nat(text.length), fc.nat(20), fc.string())
      .map(([at, length, insert]) => text.slice(0, at) + insert + text.slice(at + length));
    fc.assert(
      fc.property(fc.oneof(mutated, fc.string({ unit: 'binary' })), (xml) => {
        try {
          declarationFromXml(xml);
        } catch (error) {
          assert.ok(error instanceof UsageError);
          assert.equal(error.code, 'declaration-invalid');
        }
      }),
      { numRuns: 500 },
    );
  });
});

describe('a live status', () => {
  const anyStatus: fc.Arbitrary<LiveStatus> = fc.record(
    {
      instance: anyText,
      disks: fc.array(
        fc.record({ dev: anyDev, state: anyText, since: anyText, runningOn: anyText, mirror: anyText }, plain),
      ),
    },
    plain,
  );

  it('is read back as it was written', () => {
    fc.assert(fc.property(anyStatus, (status) => assert.deepEqual(statusFromXml(statusToXml(status)), status)));
  });

  it('stands beside a declaration in a domain', () => {
    const status: LiveStatus = { instance: 'i', disks: [] };
    const xml = withMetadata(domainXml('live.xml'), STATUS_URI, STATUS_KEY, statusToXml(status));
    assert.deepEqual(parseDomain(xml).status, status);
    assert.ok(parseDomain(xml).declaration);
  });

  it('is refused if virt-cdp did not write it', () => {
    for (const xml of [
      '<status/>',
      '<other/>',
      "<status instance='1'><disk dev='vda'/></status>",
      '<',
      "<s:status xmlns:s='urn:x' instance='1'/>",
    ]) {
      assert.throws(() => statusFromXml(xml), CdpError);
    }
  });
});
