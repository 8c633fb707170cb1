import assert from 'node:assert/strict';
import type { DomainDisk } from '../../src/domain/domain.ts';
import { parseDomain } from '../../src/domain/domain.ts';
import { agentCheck } from '../../src/doctor/checks/agent.ts';
import { clockCheck } from '../../src/doctor/checks/clock.ts';
import { configurationCheck } from '../../src/doctor/checks/configuration.ts';
import { copiesCheck } from '../../src/doctor/checks/copies.ts';
import { durabilityCheck } from '../../src/doctor/checks/durability.ts';
import { emulatorCheck, emulatorsIn } from '../../src/doctor/checks/emulator.ts';
import { fileOwnersCheck, qemuOwnerIn } from '../../src/doctor/checks/file-owners.ts';
import { hookCheck } from '../../src/doctor/checks/hook.ts';
import { libvirtCheck } from '../../src/doctor/checks/libvirt.ts';
import { confinementsIn, permissionsCheck } from '../../src/doctor/checks/permissions.ts';
import { policyFilesCheck } from '../../src/doctor/checks/policy-files.ts';
import { primariesCheck } from '../../src/doctor/checks/primaries.ts';
import { relaysCheck } from '../../src/doctor/checks/relays.ts';
import { spaceCheck } from '../../src/doctor/checks/space.ts';
import { stopPolicyCheck } from '../../src/doctor/checks/stop-policy.ts';
import { storeCheck } from '../../src/doctor/checks/store.ts';
import type { Remark, Severity } from '../../src/doctor/finding.ts';

/** What each of the remarks is, and the words in which it tells what to do. */
function judged(remarks: Remark[]): [Severity, string | null][] {
  return remarks.map(({ severity, fix }) => [severity, fix]);
}

function allWell(remarks: Remark[]): void {
  assert.deepEqual(judged(remarks), [['ok', null]]);
}

function finds(remarks: Remark[], severity: Severity, what: RegExp, fix: RegExp): void {
  assert.equal(remarks.length, 1, JSON.stringify(remarks));
  const [remark] = remarks as [Remark];
  assert.equal(remark.severity, severity);
  assert.match(remark.what, what);
  assert.match(remark.fix ?? '', fix);
  assert.ok(remark.why);
}

describe('virt-cdp doctor', () => {
  describe('agent', () => {
    const report = {
      version: '1.0.0',
      node: '20.19.0',
      pid: 7,
      startedAt: '2026-01-31T12:00:00.000Z',
      configPath: '/etc/virt-cdp/virt-cdp.toml',
      configProblem: null,
      store: '/var/lib/virt-cdp',
      libvirtConnected: true,
    };
    const well = { report, problem: null, version: '1.0.0', node: '22.1.0' };
    const others = (facts: typeof well): Remark[] =>
      agentCheck.examine(facts).filter(({ severity }) => severity !== 'ok');

    it('is content', () => allWell(agentCheck.examine(well)));
    it('finds an agent that does not answer', () =>
      finds(agentCheck.examine({ ...well, report: null, problem: 'no socket' }), 'error', /no socket/, /systemctl/));
    it('finds an agent of another version', () =>
      finds(others({ ...well, version: '1.0.1' }), 'warning', /1\.0\.0, this command is 1\.0\.1/, /restart virt-cdpd/));
    it('finds an agent without libvirt', () =>
      finds(others({ ...well, report: { ...report, libvirtConnected: false } }), 'error', /libvirt/, /libvirtd/));
    for (const node of ['18.20.1', '20.18.9', '9.99.99']) {
      it(`finds Node ${node} too old`, () => finds(others({ ...well, node }), 'error', /this command/, /newer Node/));
      it(`finds the agent's Node ${node} too old`, () =>
        finds(others({ ...well, report: { ...report, node } }), 'error', /the agent runs on/, /newer Node/));
    }
  });

  describe('configuration', () => {
    const path = '/etc/virt-cdp/virt-cdp.toml';
    const report = { configPath: path, configProblem: null, store: '/s' };
    const well = { path, problem: null, store: '/s', report };

    it('is content, with and without an agent', () => {
      allWell(configurationCheck.examine(well));
      allWell(configurationCheck.examine({ ...well, report: null }));
    });
    it('finds a broken file', () =>
      finds(configurationCheck.examine({ ...well, problem: 'unknown key x' }), 'error', /key x/, /--check/));
    it('finds a file that the agent could not reload', () =>
      finds(
        configurationCheck.examine({ ...well, report: { ...report, configProblem: 'unknown key y' } }),
        'error',
        /key y/,
        /--check/,
      ));
    it("finds that the agent reads another file, and another file's store", () => {
      const elsewhere = { ...report, configPath: '/root/x.toml' };
      finds(configurationCheck.examine({ ...well, report: elsewhere }), 'warning', /x\.toml/, /--config/);
      finds(configurationCheck.examine({ ...well, store: '/t' }), 'warning', /\/s, .* \/t/, /restart virt-cdpd/);
    });
  });

  describe('policy-files', () => {
    const folder = '/etc/virt-cdp/policy.d';
    it('is content', () =>
      allWell(
        policyFilesCheck.examine({ folder, files: [{ file: `${folder}/a.toml`, problem: null }], refusals: [] }),
      ));
    it('finds a broken file', () =>
      finds(
        policyFilesCheck.examine({ folder, files: [{ file: `${folder}/a.toml`, problem: 'line 3' }], refusals: [] }),
        'error',
        /line 3/,
        /a\.toml/,
      ));
    it('finds what a file asks for in vain', () => {
      const refusals = [{ domain: 'web1', disk: 'vda', file: 'a.toml', why: 'no such mirror' }];
      finds(policyFilesCheck.examine({ folder, files: [], refusals }), 'error', /web1 vda .* no such mirror/, /again/);
    });
  });

  describe('libvirt', () => {
    it('is content', () => allWell(libvirtCheck.examine({ version: 9_000_000, problem: null })));
    it('finds it down', () =>
      finds(libvirtCheck.examine({ version: null, problem: 'refused' }), 'error', /refused/, /systemctl/));
    it('finds it too old', () =>
      finds(libvirtCheck.examine({ version: 7_006_001, problem: null }), 'error', /7\.6\.1/, /upgrade/));
  });

  describe('emulator', () => {
    const well = { path: '/usr/bin/qemu', version: '7.2.22', quorumProblem: null };
    it('is content', () => allWell(emulatorCheck.examine([well])));
    it('finds a QEMU without quorum', () =>
      finds(
        emulatorCheck.examine([{ ...well, quorumProblem: "Unknown driver 'quorum'" }]),
        'warning',
        /Unknown/,
        /QEMU/,
      ));
    it('finds a QEMU too old', () =>
      finds(emulatorCheck.examine([{ ...well, version: '5.2.0' }]), 'error', /5\.2\.0/, /upgrade/));
    it('finds no QEMU', () => finds(emulatorCheck.examine([]), 'error', /no QEMU/, /install/));
    it("takes the emulator of the host's architecture", () => {
      const guest = (arch: string): string =>
        `<guest><os_type>hvm</os_type><arch name='${arch}'><emulator>/usr/bin/qemu-system-${arch}</emulator></arch></guest>`;
      const xml = `<capabilities><host><cpu><arch>x86_64</arch></cpu></host>${['i686', 'x86_64', 'x86_64'].map(guest).join('')}</capabilities>`;
      assert.deepEqual(emulatorsIn(xml), ['/usr/bin/qemu-system-x86_64']);
    });
  });

  describe('hook', () => {
    const variables = { node: '/n', program: '/p', socket: '/s', store: '/t', deadline_ms: '1000' };
    const file = { executable: true, changedAtMs: 2000, variables };
    const well = {
      path: '/etc/libvirt/hooks/qemu.d/50-virt-cdp',
      file,
      missing: [],
      wanted: { socket: '/s', store: '/t' },
      daemon: { pid: 9, startedAtMs: 1000 },
      calledBy: 9,
      otherHook: false,
    };
    it('is content with one that the running libvirtd calls', () => allWell(hookCheck.examine(well)));
    it('is content with one that was there before libvirtd', () =>
      allWell(hookCheck.examine({ ...well, calledBy: null, file: { ...file, changedAtMs: 500 } })));
    it("is content with one in the folder of somebody's older hook", () =>
      allWell(hookCheck.examine({ ...well, calledBy: 8, otherHook: true })));
    it('finds one that libvirtd may not have noticed', () =>
      finds(hookCheck.examine({ ...well, calledBy: 8 }), 'unknown', /never called/, /^kill -HUP 9$/));
    it('finds no libvirtd', () =>
      finds(hookCheck.examine({ ...well, daemon: null }), 'unknown', /no libvirtd/, /systemctl/));
    it('finds none', () => finds(hookCheck.examine({ ...well, file: null }), 'error', /no \/etc/, /install-hook/));
    it('finds one that is not executable', () =>
      finds(hookCheck.examine({ ...well, file: { ...file, executable: false } }), 'error', /executable/, /chmod 755/));
    it('finds one that is not ours', () =>
      finds(
        hookCheck.examine({ ...well, file: { ...file, variables: null } }),
        'error',
        /not virt-cdp/,
        /install-hook/,
      ));
    it('finds a program gone', () =>
      finds(hookCheck.examine({ ...well, missing: ['/n'] }), 'error', /runs \/n/, /install-hook/));
    it('finds another socket or store than is configured', () => {
      for (const key of ['socket', 'store'])
        finds(
          hookCheck.examine({ ...well, wanted: { ...well.wanted, [key]: '/x' } }),
          'error',
          new RegExp(`${key} /[st], the configuration /x`),
          /install-hook/,
        );
    });
  });

  describe('stop-policy', () => {
    const disk = (driver: string, more = ''): DomainDisk =>
      parseDomain(
        `<domain><name>web1</name><devices><disk type='file' device='disk'><driver name='qemu' type='raw' ${driver}/>` +
          `<source file='/a'/><target dev='vda' bus='virtio'/>${more}</disk></devices></domain>`,
      ).disks[0]!;
    const good = disk("error_policy='stop' rerror_policy='stop'");
    const bad = disk('');
    const well = { domain: 'web1', dev: 'vda', defined: good, live: good };

    it('is content', () => {
      allWell(stopPolicyCheck.examine([well, { ...well, live: undefined }, { ...well, defined: undefined }]));
    });
    it('finds a disk that runs without it', () => {
      finds(stopPolicyCheck.examine([{ ...well, live: bad }]), 'warning', /runs without/, /virsh shutdown web1/);
      finds(stopPolicyCheck.examine([{ ...well, live: bad, defined: undefined }]), 'warning', /runs/, /transient/);
    });
    it('finds a disk whose guest is told that what failed is done', () => {
      const live = disk("error_policy='ignore'");
      finds(stopPolicyCheck.examine([{ ...well, live }]), 'error', /runs without/, /virsh shutdown web1/);
    });
    it('finds a disk that will run without it', () =>
      finds(stopPolicyCheck.examine([{ ...well, defined: bad }]), 'warning', /defined without/, /virsh edit web1/));
    it('finds a disk that can not be protected', () =>
      finds(
        stopPolicyCheck.examine([{ ...well, live: disk('', '<shareable/>') }]),
        'error',
        /shareable/,
        /unprotect web1 --disk vda/,
      ));
    it('finds a disk that libvirt does not have', () =>
      finds(
        stopPolicyCheck.examine([{ ...well, live: undefined, defined: undefined }]),
        'unknown',
        /no disk vda/,
        /virsh dumpxml web1/,
      ));
  });

  describe('copies', () => {
    const copy = { domain: 'web1', dev: 'vda', side: 'mirror', name: 'nbd://s/x', current: true, answer: { ok: true } };
    const silent = { ok: false, reason: 'refused', late: false };
    it('is content', () => allWell(copiesCheck.examine([copy] as never)));
    it('finds a copy that does not answer, the worse if it is current', () => {
      const examine = (current: boolean): Remark[] =>
        copiesCheck.examine([{ ...copy, current, answer: silent }] as never);
      finds(examine(true), 'error', /mirror of web1 vda, 'nbd:\/\/s\/x'.*refused/, /virt-cdp status web1/);
      finds(examine(false), 'warning', /mirror of web1/, /virt-cdp status web1/);
    });
  });

  describe('durability', () => {
    const copy = { domain: 'web1', dev: 'vda', side: 'mirror', kind: 'iscsi', doubt: null };
    it('is content', () => allWell(durabilityCheck.examine([copy] as never)));
    it('finds a copy whose storage may lose what it has acknowledged', () =>
      finds(
        durabilityCheck.examine([
          copy,
          { ...copy, doubt: { what: 'the LUN has a write cache', known: true } },
        ] as never),
        'warning',
        /mirror of web1 vda: the LUN has a write cache/,
        /off at its target/,
      ));
    it('does not know', () =>
      finds(
        durabilityCheck.examine([
          { ...copy, doubt: { what: 'whether the LUN has a write cache', known: false } },
        ] as never),
        'unknown',
        /mirror of web1 vda: whether the LUN has a write cache/,
        /ask the doctor again/,
      ));
  });

  describe('permissions', () => {
    const local = [{ domain: 'web1', dev: 'vda', name: '/dev/sdb' }];
    const well = { confinedBy: [], virsh: '8.2.0', local };
    it('is content', () => {
      allWell(permissionsCheck.examine(well));
      allWell(permissionsCheck.examine({ ...well, confinedBy: ['apparmor'], local: [] }));
      allWell(permissionsCheck.examine({ ...well, virsh: '10.0.0' }));
    });
    it('finds what may keep QEMU from a mirror', () => {
      for (const [model, fix] of [
        ['apparmor', /libvirt-qemu\.d/],
        ['selinux', /ausearch/],
      ] as const)
        finds(
          permissionsCheck.examine({ ...well, confinedBy: [model] }),
          'warning',
          new RegExp(`${model}, .* web1 vda, '/dev/sdb'`),
          fix,
        );
    });
    it('finds virsh missing, or too old', () => {
      finds(permissionsCheck.examine({ ...well, virsh: null }), 'error', /not installed/, /libvirt-client/);
      finds(permissionsCheck.examine({ ...well, virsh: '8.1.0' }), 'error', /8\.1\.0/, /libvirt-client/);
    });
    it("reads libvirt's capabilities", () => {
      const model = (name: string): string => `<secmodel><model>${name}</model><doi>0</doi></secmodel>`;
      const xml = (...names: string[]): string =>
        `<capabilities><host>${names.map(model).join('')}</host></capabilities>`;
      assert.deepEqual(confinementsIn(xml('apparmor', 'dac')), ['apparmor']);
      assert.deepEqual(confinementsIn(xml('none')), []);
    });
  });

  describe('file-owners', () => {
    const mirror = { domain: 'web1', dev: 'vda', name: '/m', path: '/m', owner: { uid: 0, gid: 0 }, mode: 0o640 };
    const ofQemu = (uid: number, gid: number, gives = false): Parameters<typeof fileOwnersCheck.examine>[0] => ({
      ...{ qemu: { uid, gid }, gives, mirrors: [mirror] },
    });
    it('is content where libvirt gives QEMU its files, or QEMU may open them anyhow', () => {
      allWell(fileOwnersCheck.examine(ofQemu(64055, 64055, true)));
      allWell(fileOwnersCheck.examine(ofQemu(0, 0)));
      allWell(fileOwnersCheck.examine({ ...ofQemu(64055, 64055), qemu: null }));
      const own = { ...mirror, owner: { uid: 64055, gid: 0 }, mode: 0o600 };
      allWell(fileOwnersCheck.examine({ ...ofQemu(64055, 64055), mirrors: [own, { ...mirror, mode: 0o646 }] }));
    });
    it('finds a mirror that its QEMU could not be started from', () => {
      for (const gid of [64055, 0])
        finds(fileOwnersCheck.examine(ofQemu(64055, gid)), 'warning', /mirror of web1 vda/, /^chown 64055:\d+ \/m$/);
    });
    it("reads libvirt's capabilities", () => {
      const xml = (label: string): string =>
        `<capabilities><host><secmodel><model>none</model></secmodel><secmodel><model>dac</model>` +
        `<baselabel type='kvm'>+1:+1</baselabel><baselabel type='qemu'>${label}</baselabel></secmodel></host></capabilities>`;
      assert.deepEqual(qemuOwnerIn(xml('+64055:+107')), { uid: 64055, gid: 107 });
      assert.equal(qemuOwnerIn(xml('x')), null);
      assert.equal(qemuOwnerIn('<capabilities><host/></capabilities>'), null);
    });
  });

  describe('primaries', () => {
    it('is content with those that fail by themselves', () =>
      allWell(primariesCheck.examine([{ domain: 'web1', dev: 'vda', by: 'rbd', endsByItself: true }])));
    for (const [by, fix] of [
      ['iscsi', /replacement_timeout/],
      ['rbd', /rados_osd_op_timeout/],
      ['nfs', /softerr/],
    ] as const) {
      it(`finds ${by} that waits for ever`, () =>
        finds(
          primariesCheck.examine([{ domain: 'web1', dev: 'vda', by, endsByItself: false }]),
          'warning',
          /web1 vda/,
          fix,
        ));
    }
  });

  describe('relays', () => {
    it('is content with qemu-nbd, and without where nothing needs it', () => {
      allWell(relaysCheck.examine({ disks: ['web1 vda'], missing: false }));
      allWell(relaysCheck.examine({ disks: [], missing: true }));
    });
    it('finds it missing', () =>
      finds(relaysCheck.examine({ disks: ['web1 vda'], missing: true }), 'error', /qemu-nbd/, /qemu-utils/));
  });

  describe('space', () => {
    it('is content', () => allWell(spaceCheck.examine({ places: [{ domain: 'web1', dev: 'vda', problem: null }] })));
    it('finds a rebuild without room', () =>
      finds(
        spaceCheck.examine({ places: [{ domain: 'web1', dev: 'vda', problem: '9 bytes free' }] }),
        'warning',
        /web1 vda .* 9 bytes/,
        /room/,
      ));
  });

  describe('store', () => {
    const on = { source: '/dev/sda1', type: 'ext4', mount: '/' };
    const well = { path: '/var/lib/virt-cdp', problems: [], on, copies: [] };
    const beside = (copy: string, under: typeof on | null): typeof well & { copies: unknown } => ({
      ...well,
      copies: [{ what: 'the primary of web1 vda', path: copy, on: under }] as never,
    });
    it('is content', () => {
      allWell(storeCheck.examine(well));
      allWell(storeCheck.examine(beside('/images/a', { ...on, source: '/dev/sdb1', mount: '/images' })));
      allWell(storeCheck.examine(beside('/images/a', null)));
    });
    it('finds records that can not be read', () =>
      finds(storeCheck.examine({ ...well, problems: ['the record x is broken'] }), 'error', /record x/, /root/));
    it('finds it in memory, or on the network', () => {
      finds(storeCheck.examine({ ...well, on: { ...on, type: 'tmpfs' } }), 'error', /in memory/, /store/);
      finds(storeCheck.examine({ ...well, on: { ...on, type: 'nfs4' } }), 'error', /on the network/, /store/);
    });
    it('finds it on the storage of a copy', () => {
      finds(storeCheck.examine(beside('/images/a', on)), 'warning', /the primary of web1 vda/, /store/);
      finds(storeCheck.examine(beside('/dev/sda1', null)), 'warning', /the primary of web1 vda/, /store/);
    });
    it('does not know', () => finds(storeCheck.examine({ ...well, on: null }), 'unknown', /not known/, /df/));
  });

  describe('clock', () => {
    it('is content', () => allWell(clockCheck.examine({ synchronized: true })));
    it('finds it running free', () => finds(clockCheck.examine({ synchronized: false }), 'warning', /not/, /set-ntp/));
    it('does not know', () => finds(clockCheck.examine({ synchronized: null }), 'unknown', /not known/, /timedatectl/));
  });
});
