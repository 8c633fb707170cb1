import assert from 'node:assert/strict';
import fc from 'fast-check';
import { CdpError } from '../../src/errors.ts';
import { imageFromDiskXml, imageToDiskXml } from '../../src/domain/disk-image.ts';
import { hasStopPolicy, parseDomain } from '../../src/domain/domain.ts';
import { withDiskImage } from '../../src/domain/edit.ts';
import { parseImageUri } from '../../src/storage/image.ts';
import { domainWith, domainXml, domainXmls, virsh } from './fixtures.ts';

describe('parseDomain', () => {
  it('reads a domain as virt-install makes it', () => {
    const domain = parseDomain(domainXml('virt-install.xml'));
    assert.equal(domain.name, 'web1');
    assert.equal(domain.uuid, '6b0e5f7e-6a2c-4c8e-9d7a-0a7b1c2d3e4f');
    assert.equal(domain.id, null);
    assert.equal(domain.declaration, null);
    assert.equal(domain.declarationProblem, null);
    assert.equal(domain.status, null);
    assert.deepEqual(domain.disks, [
      {
        dev: 'vda',
        bus: 'virtio',
        device: 'disk',
        readOnly: false,
        shareable: false,
        transient: false,
        image: { source: { kind: 'file', path: '/var/lib/libvirt/images/web1.qcow2' }, format: 'qcow2' },
        unsupported: null,
        unsupportedHint: null,
        volume: null,
        errorPolicy: null,
        readErrorPolicy: null,
        ioThread: false,
        alias: null,
        sourceIndex: null,
        backing: [],
      },
      {
        dev: 'sda',
        bus: 'sata',
        device: 'cdrom',
        readOnly: true,
        shareable: false,
        transient: false,
        image: null,
        unsupported: 'sda is a cdrom: there are no writes to protect',
        unsupportedHint: "protect the domain's other disks; virsh domblklist names them",
        volume: null,
        errorPolicy: null,
        readErrorPolicy: null,
        ioThread: false,
        alias: null,
        sourceIndex: null,
        backing: [],
      },
    ]);
  });

  it('reads a live domain with a declaration and a status', () => {
    const domain = parseDomain(domainXml('live.xml'));
    assert.equal(domain.name, 'db & more');
    assert.equal(domain.id, 17);
    assert.deepEqual(domain.declaration, {
      policy: 'strict',
      disks: [
        {
          dev: 'vda',
          mirror: {
            source: { kind: 'nbd', server: { host: 'storage1', port: 10809 }, exportName: 'db-vda' },
            format: 'raw',
          },
          rebuild: { to: '/var/lib/libvirt/images/{domain}-{dev}-{n}.qcow2', format: 'qcow2', auto: true },
        },
      ],
    });
    assert.deepEqual(domain.status, {
      instance: 'boot-17',
      disks: [
        {
          dev: 'vda',
          state: 'protected',
          since: '2026-01-31T12:00:00.000Z',
          runningOn: 'both',
          mirror: 'nbd://storage1/db-vda',
        },
      ],
    });
    const [vda, sda, sdb] = domain.disks;
    assert.ok(vda && sda && sdb);
    assert.deepEqual(
      [vda.alias, vda.sourceIndex, vda.unsupported, hasStopPolicy(vda)],
      ['virtio-disk0', 3, null, true],
    );
    assert.deepEqual([sda.alias, sda.sourceIndex, hasStopPolicy(sda)], ['scsi0-0-0-0', 2, true]);
    assert.match(sda.unsupported ?? '', /copies on read/);
    assert.match(sdb.unsupported ?? '', /virtio-scsi controller with an iothread/);
  });

  /** By target: why it can't be protected, and what the hint names. */
  const odd: Record<string, [why: RegExp, hint: RegExp] | null> = {
    vda: null,
    vdb: [/is read-only/, /other disks/],
    vdc: [/is shareable/, /<shareable\/>/],
    vdd: [/is transient/, /<transient\/>/],
    vde: [/disk type 'volume' is not supported/, /files, block devices/],
    vdf: [/disk type 'dir' is not supported/, /files, block devices/],
    vdg: [/is an NVMe controller that is taken from the host/, /type='block'/],
    vdh: [/served by another process \(type='vhostuser'\)/, /file, a block device or an NBD export/],
    vdi: null,
    vdj: null,
    vdk: [/format is 'vmdk'/, /raw and qcow2/],
    vdl: [/slice/, /./],
    vdm: [/cache='unsafe'/, /cache='none'/],
    hda: [/on the bus 'ide'/, /bus='virtio'/],
    sda: [/is a lun that is passed through/, /device='disk'/],
    sdb: [/is a cdrom/, /other disks/],
    fda: [/is a floppy/, /other disks/],
  };
  it('says of each odd disk why it can not be protected, and what to do', () => {
    const { disks } = parseDomain(domainXml('odd-disks.xml'));
    assert.deepEqual(
      disks.map(({ dev }) => dev),
      Object.keys(odd),
    );
    for (const { dev, unsupported, unsupportedHint } of disks) {
      const says = odd[dev];
      if (says == null) assert.deepEqual([unsupported, unsupportedHint], [null, null]);
      else {
        assert.match(unsupported ?? '', says[0], dev);
        assert.ok(unsupported?.startsWith(`${dev} `), unsupported ?? '');
        assert.match(unsupportedHint ?? '', says[1], dev);
      }
    }
  });

  it('says of each network disk what it is, or why it can not be protected', () => {
    const disks = new Map(parseDomain(domainXml('network.xml')).disks.map((disk) => [disk.dev, disk]));
    const server = { host: '::1', port: 10810 };
    assert.deepEqual(disks.get('vda')?.image?.source, { kind: 'nbd', server, exportName: 'a&b' });
    assert.deepEqual(disks.get('vdb')?.image, {
      source: { kind: 'nbd', server: { socket: '/run/nbd.sock' }, exportName: '' },
      format: 'qcow2',
    });
    const hosts = ['mon1', 'mon2'].map((host) => ({ host, port: 6789 }));
    assert.deepEqual(disks.get('vde')?.image?.source, {
      ...{ kind: 'rbd', pool: 'pool', namespace: null, image: 'image', hosts, config: null },
      login: { username: 'libvirt', secret: { usage: 'ceph' } },
    });
    assert.deepEqual(disks.get('vdf')?.image?.source, {
      ...{ kind: 'iscsi', host: '10.0.0.9', port: 3260, target: 'iqn.2026-01.org.example:web1', lun: 1 },
      ...{ initiator: null, login: null },
    });
    assert.deepEqual(disks.get('vdc')?.image?.source, {
      kind: 'nbd',
      server: { host: 'storage1', port: 10809, tls: true },
      exportName: 'secret',
    });
    assert.match(disks.get('vdg')?.unsupported ?? '', /TLS/);
    assert.equal(disks.get('vdg')?.image, null);
  });

  const disk = (source: string, driver = "<driver name='qemu' type='raw'/>", type = 'network'): string =>
    `<disk type='${type}' device='disk'>${driver}${source}<target dev='vda' bus='virtio'/></disk>`;
  const refused: [xml: string, says: RegExp][] = [
    [disk("<source protocol='nbd'><host name='h'/><reconnect delay='10'/></source>"), /reconnects by itself/],
    [disk("<source protocol='nbd'/>"), /server is not named/],
    [disk("<source protocol='nbd' tls='yes'><host transport='unix' socket='/s'/></source>"), /TLS over a unix socket/],
    [disk("<source protocol='nbd' tls='yes' tlsHostname='x'><host name='h'/></source>"), /another name/],
    [disk("<source file='/a'><encryption format='qcow'/></source>", '', 'file'), /the format 'qcow'/],
    [disk("<source file='/a'><encryption format='luks'/></source>", '', 'file'), /names no secret/],
    [disk("<source file='/a'><encryption format='luks' engine='librbd'/></source>", '', 'file'), /by 'librbd'/],
    [
      disk("<source file='/a'><encryption format='luks'><secret/><secret/></encryption></source>", '', 'file'),
      /several secrets/,
    ],
    [disk("<source protocol='nbd'><host name='h'/><host name='i'/></source>"), /several NBD servers/],
    [disk("<source protocol='nbd'><host name='h' transport='vsock'/></source>"), /transport 'vsock'/],
    [disk("<source protocol='nbd'><host name='h' port='x'/></source>"), /port/],
    [disk("<source protocol='nbd'><host name='h'/><auth username='u'/></source>"), /needs a login/],
    [disk("<source protocol='iscsi' name='iqn.2026-01.x:y/1'/>"), /portal is not named/],
    [disk("<source protocol='iscsi' name='iqn.2026-01.x:y/1'><host name='h'/><host name='i'/></source>"), /several/],
    [disk("<source protocol='iscsi' name='iqn.2026-01.x:y/1/2'><host name='h'/></source>"), /LUN '1\/2'/],
    [disk("<source protocol='iscsi' name='y/1'><host name='h'/></source>"), /iSCSI name 'y'/],
    [
      disk("<source protocol='iscsi' name='iqn.2026-01.x:y'><host name='h'/><auth username='u'/></source>"),
      /no <secret type='iscsi'>/,
    ],
    [
      disk(
        "<source protocol='iscsi' name='iqn.2026-01.x:y'><host name='h'/>" +
          "<auth username='u'><secret type='ceph' usage='s'/></auth></source>",
      ),
      /no <secret type='iscsi'>/,
    ],
    [disk("<source protocol='rbd' name='image'/>"), /not pool\/image/],
    [disk("<source protocol='rbd' name='pool/image@snap'/>"), /not pool\/image/],
    [disk("<source protocol='rbd' name='pool/image'><snapshot name='s'/></source>"), /snapshot/],
    [disk("<source protocol='rbd' name='p/i'><auth username='u'><secret type='ceph'/></auth></source>"), /one of uuid/],
    [disk("<source protocol='constructor'/>"), /protocol 'constructor'/],
    [disk("<source protocol='file' file='/a'/>"), /protocol 'file'/],
    [disk("<source file='/a' fdgroup='f'/>", '', 'file'), /descriptor/],
    [disk("<source file='/a'><dataStore type='file'/></source>", '', 'file'), /another file/],
    [disk("<source file='a'/>", '', 'file'), /not an absolute path/],
    [disk("<source dev='/dev/vhost-vdpa-0'/>", undefined, 'vhostvdpa'), /served by hardware/],
    [disk("<source file='/a&#10;b'/>", '', 'file'), /control characters/],
    [disk("<source file=''/>", '', 'file'), /no source/],
    [disk('<source/>', '', 'file'), /no source/],
    [disk("<source file='/a'/>", "<driver name='tap2' type='raw'/>", 'file'), /driver is 'tap2'/],
    [
      disk(
        "<source file='/a'/>",
        "<driver name='qemu' type='raw'><iothreads><iothread id='1'/></iothreads></driver>",
        'file',
      ),
      /several iothreads/,
    ],
  ];
  for (const [xml, says] of refused) {
    it(`finds that ${String(says)} in ${xml.slice(0, 90)}`, () => {
      assert.match(parseDomain(domainWith(xml)).disks[0]?.unsupported ?? '', says);
    });
  }

  it('reads and writes what an encrypted disk is opened with', () => {
    const secret = { uuid: '0a81f5b2-8403-7b23-c8d6-21ccc2f80d6f' };
    const disks = parseDomain(domainXml('odd-disks.xml')).disks.filter(({ dev }) => ['vdi', 'vdj'].includes(dev));
    assert.deepEqual(
      disks.map(({ image }) => image?.encryption),
      [{ secret }, { secret }],
    );
    const image = { ...parseImageUri('nbds://storage1/web1'), encryption: { secret: { usage: 'a&b' } } };
    assert.deepEqual(imageFromDiskXml(imageToDiskXml(image)), image);
    const moved = parseDomain(withDiskImage(domainXml('odd-disks.xml'), 'vdj', image)).disks[9];
    assert.deepEqual(moved?.image, image);
  });

  it('tells the memory that libvirt prints', () => {
    const memoryOf = (memory: string): number | null =>
      parseDomain(`<domain><name>a</name>${memory}</domain>`).memoryBytes;
    assert.equal(memoryOf("<memory unit='KiB'>131072</memory>"), 128 * 1024 * 1024);
    assert.equal(memoryOf("<memory unit='MiB'>128</memory>"), null);
    assert.equal(memoryOf(''), null);
  });

  it('tells a declaration that can not be read from none at all', () => {
    const metadata =
      "<metadata><p:protection xmlns:p='https://virt-cdp.org/xmlns/domain/1' policy='maybe'/></metadata>";
    const domain = parseDomain(domainWith().replace('<memory>', `${metadata}<memory>`));
    assert.equal(domain.declaration, null);
    assert.equal(domain.declarationProblem?.code, 'declaration-invalid');
  });

  it('does not take metadata of others for ours', () => {
    const foreign = "<metadata><protection xmlns='urn:other'/><o:status xmlns:o='urn:other'/></metadata>";
    const domain = parseDomain(domainWith().replace('<memory>', `${foreign}<memory>`));
    assert.deepEqual([domain.declaration, domain.declarationProblem, domain.status], [null, null, null]);
  });

  it('throws nothing but CdpError at what is no domain', () => {
    const deep = `${'<a>'.repeat(5000)}${'</a>'.repeat(5000)}`;
    const fixed = [
      '',
      '<',
      '<a/>',
      '<domain/>',
      '<domain><name/></domain>',
      deep,
      '<!DOCTYPE a><domain/>',
      '<a>&lol;</a>',
    ];
    for (const xml of fixed) assert.throws(() => parseDomain(xml), CdpError, xml.slice(0, 40));
    const xmls = [...domainXmls.values()];
    const mutated = fc
      .tuple(fc.constantFrom(...xmls), fc.nat(), fc.nat(200), fc.string())
      .map(([xml, at, length, text]) => xml.slice(0, at % xml.length) + text + xml.slice((at % xml.length) + length));
    fc.assert(
      fc.property(fc.oneof(fc.string({ unit: 'binary' }), mutated), (xml) => {
        try {
          parseDomain(xml);
        } catch (error) {
          assert.ok(error instanceof CdpError, String(error));
        }
      }),
      { numRuns: 300 },
    );
  });

  it('is tried with XML that libvirt takes', function () {
    for (const name of domainXmls.keys()) {
      const result = virsh(`define --validate ${import.meta.dirname}/xml/${name}`);
      if (result === null) return this.skip();
      assert.equal(result.status, 0, `${name}: ${result.stderr}`);
    }
  });
});

describe('hasStopPolicy', () => {
  const cases: [errorPolicy: string | null, readErrorPolicy: string | null, stops: boolean][] = [
    ['stop', 'stop', true],
    ['stop', null, true],
    ['stop', 'report', false],
    ['report', 'stop', false],
    [null, 'stop', false],
    [null, null, false],
    ['enospace', 'stop', false],
  ];
  for (const [errorPolicy, readErrorPolicy, stops] of cases) {
    it(`is ${stops} of error_policy=${errorPolicy ?? '-'} rerror_policy=${readErrorPolicy ?? '-'}`, () => {
      assert.equal(hasStopPolicy({ errorPolicy, readErrorPolicy }), stops);
    });
  }
});
