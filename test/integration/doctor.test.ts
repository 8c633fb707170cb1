import assert from 'node:assert/strict';
import { appendFileSync, chmodSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { delimiter, dirname, join } from 'node:path';
import { send } from '../../src/control/transport.ts';
import type { Finding, Severity } from '../../src/doctor/finding.ts';
import type { DomainDisk } from '../lab/domain-xml.ts';
import { isListening } from '../lab/listening.ts';
import { Daemon, must } from '../lab/run.ts';
import { waitFor } from '../lab/wait.ts';
import { patienceMs, setScene } from './scene.ts';

/** What a check must say: its name, how bad it is, what it names, and what there is to type. */
type Expected = readonly [check: string, severity: Severity, what: RegExp, fix: RegExp];

describe('virt-cdp doctor, on a real libvirtd', function () {
  this.timeout(150_000);
  // Not in the folder of temporary files, which may be in memory: that would be a fault.
  const folder = mkdtempSync('/var/tmp/virt-cdp-doctor-');
  const bin = join(folder, 'bin');
  const storeDir = join(folder, 'store');
  const PATH = [bin, process.env['PATH']].join(delimiter);
  const scene = setScene({ storeDir, env: { PATH } }, { qemuAs: 'distribution' });
  const others: Daemon[] = [];

  before(() => {
    // QEMU's user runs what is planted in it.
    chmodSync(folder, 0o711);
    mkdirSync(bin);
    // The clock is the one thing that every machine has and none lets a test change.
    instead('timedatectl', 'echo yes');
  });

  after(async () => {
    for (const other of others) await other.end();
    rmSync(folder, { recursive: true });
  });

  /** Another program of this name for all that look for one. */
  function instead(name: string, script: string): void {
    writeFileSync(join(bin, name), `#!/bin/sh\n${script}\n`, { mode: 0o755 });
  }

  async function ask(): Promise<Finding[]> {
    const { stdout, stderr } = await scene.agent.cdp('doctor', '--json', '--config', scene.agent.configPath);
    assert.equal(stderr, '');
    return JSON.parse(stdout) as Finding[];
  }

  async function of(check: string): Promise<Finding> {
    const found = (await ask()).filter((finding) => finding.check === check);
    assert.equal(found.length, 1, JSON.stringify(found, null, 2));
    return found[0]!;
  }

  /** Each is found once, with its fix. */
  function assertFound(found: Finding[], expected: readonly Expected[]): void {
    for (const [check, severity, what, fix] of expected) {
      const all = found.filter((one) => one.check === check && what.test(one.what));
      assert.equal(all.length, 1, `${check} ${String(what)}:\n${JSON.stringify(found, null, 2)}`);
      const [one] = all as [Finding];
      assert.equal(one.severity, severity, one.what);
      assert.match(one.fix ?? '', fix);
      assert.ok(one.why, one.what);
    }
  }

  it('knows this QEMU, and whether the hook is called by the libvirtd that runs', async () => {
    const { lab, agent } = scene;
    assert.equal((await of('hook')).severity, 'error');
    const { severity, what } = await of('emulator');
    assert.equal(severity, 'ok', what);
    assert.match(what, /qemu-system-\S+, version \S+, has the quorum driver/);

    await agent.mustCdp('install-hook', '--dir', lab.libvirtd.hooksDir, '--config', agent.configPath);
    const unnoticed = await of('hook');
    assert.equal(unnoticed.severity, 'unknown', unnoticed.what);
    assert.equal(unnoticed.fix, `kill -HUP ${lab.libvirtd.pid}`);

    lab.libvirtd.reload();
    const image = await lab.image('doctor.raw');
    await scene.guest({ name: 'web1', start: false, disks: [{ dev: 'vda', bus: 'virtio', image }] });
    await lab.virsh('start', 'web1', '--paused');
    await lab.virsh('destroy', 'web1');
    const noticed = await of('hook');
    assert.equal(noticed.severity, 'ok', noticed.what);
    assert.match(noticed.what, /calls it/);
  });

  it("finds the agent's own figures in its metrics", async () => {
    const { socket: socketPath } = scene.agent;
    const { text } = await send({ socketPath, method: 'GET', path: '/metrics', deadlineMs: 10_000 });
    assert.match(text, /^virt_cdp_libvirt_connected 1$/m);
    assert.match(text, /^nodejs_eventloop_lag_seconds /m);
  });

  it('finds nothing where all is well, and then each planted fault, with what to type', async () => {
    const { lab, agent } = scene;
    const inside = async (...command: [string, ...string[]]): Promise<unknown> =>
      must(...lab.libvirtd.namespace.command(...command));
    const served = (await Promise.all(['primary', 'mirror'].map((name) => lab.nbd({ name })))) as [
      Awaited<ReturnType<typeof lab.nbd>>,
      Awaited<ReturnType<typeof lab.nbd>>,
    ];
    await scene.guest({
      name: 'well',
      start: false,
      disks: [{ dev: 'vda', bus: 'virtio', image: { format: 'raw', nbd: served[0].address } }],
    });
    const protect = async (domain: string, dev: string, mirror: string, ...more: string[]): Promise<unknown> =>
      agent.mustCdp('protect', domain, '--disk', dev, '--mirror', mirror, '--no-wait', ...more);
    const newPrimary = lab.path('new/{domain}-{dev}-{n}.raw');
    mkdirSync(lab.path('new'));
    await protect('well', 'vda', served[1].uri, '--rebuild-to', newPrimary);
    const well = await ask();
    assert.deepEqual(
      well.filter(({ severity }) => severity !== 'ok'),
      [],
    );

    // Four disks, each with a fault of its own, in a domain that is off; and one that runs.
    const devs = ['vda', 'vdb', 'vdc', 'vdd'];
    const disks = await Promise.all(
      devs.map(async (dev): Promise<DomainDisk> => ({ dev, bus: 'virtio', image: await lab.image(`${dev}.raw`) })),
    );
    const faulty = await scene.guest({ name: 'faulty', start: false, disks });
    const mirror = join(folder, 'mirror.raw');
    await protect('faulty', 'vda', mirror, '--create');
    const memory = lab.path('memory');
    mkdirSync(memory);
    await inside('mount', '-t', 'tmpfs', 'memory', memory);
    await protect('faulty', 'vdb', join(memory, 'mirror.raw'), '--create');
    const flushless = await serveWithoutFlush();
    await protect('faulty', 'vdc', flushless, '--overwrite-mirror');
    const gone = join(folder, 'gone.raw');
    await protect('faulty', 'vdd', gone, '--create');
    rmSync(gone);

    const image = await lab.image('running.raw');
    await scene.guest({ name: 'running', start: false, disks: [{ ...disks[0]!, image, stopPolicy: false }] });
    await lab.virsh('start', 'running', '--paused');
    const other = await lab.nbd({ name: 'other' });
    await protect('running', 'vda', other.uri);

    const iscsi = `<disk type='network' device='disk'><driver name='qemu' type='raw' error_policy='stop' rerror_policy='stop'/>
      <source protocol='iscsi' name='iqn.2026-01.org.example:x/1'><host name='10.0.0.9'/></source>`;
    const conf = join(folder, 'ceph.conf');
    writeFileSync(conf, '[client]\nrados_mon_op_timeout = 5\n');
    const rbd = `<disk type='network' device='disk'><driver name='qemu' type='raw' error_policy='stop' rerror_policy='stop'/>
      <source protocol='rbd' name='vms/x'><host name='10.0.0.1'/><config file='${conf}'/></source>`;
    const faults: Record<string, (disk: string) => string> = {
      vdb: (disk) => disk.replace(/<disk [^]*?<source[^]*?\/>/, iscsi),
      vdc: (disk) => disk.replace(/<disk [^]*?<source[^]*?\/>/, rbd),
      vdd: (disk) => disk.replace(/file='[^']*'/, `file='/on-nfs/x.raw'`),
    };
    const redefined = (await faulty.xml('--inactive')).replaceAll(/<disk [^]*?<\/disk>/g, (disk) => {
      const [, dev = ''] = /dev='(vd.)'/.exec(disk) ?? [];
      return faults[dev]?.(disk) ?? disk;
    });
    await redefine(redefined);

    instead('timedatectl', 'echo no');
    instead('virsh', `[ "$1" != --version ] || { echo 8.1.0; exit; }; PATH=${process.env['PATH']} exec virsh "$@"`);
    instead(
      'findmnt',
      `case "$*" in */on-nfs/*) echo nfs4 rw,hard ;; *) PATH=${process.env['PATH']} exec findmnt "$@" ;; esac`,
    );
    await inside('mount', '-t', 'tmpfs', '-o', 'size=1m', 'full', lab.path('new'));
    appendFileSync(join(lab.root, 'etc/qemu.conf'), 'dynamic_ownership = 0\n');
    const policies = join(dirname(agent.configPath), 'policy.d');
    mkdirSync(policies, { recursive: true });
    writeFileSync(join(policies, 'broken.toml'), 'domains = 7\n');
    const hook = join(lab.libvirtd.hooksDir, 'qemu.d/50-virt-cdp');
    chmodSync(hook, 0o644);
    await plantEmulator();
    await waitFor(
      'the agent to have read the policies',
      async () => (await of('policy-files')).severity === 'error',
      patienceMs,
    );

    assertFound(await ask(), [
      ['emulator', 'warning', /can't make a quorum node: .*Unknown driver/, /install a QEMU that has it/],
      ['hook', 'error', /not executable/, /chmod 755/],
      ['policy-files', 'error', /broken\.toml/, /broken\.toml/],
      ['store', 'warning', /on the same storage as the mirror of faulty vda/, /store/],
      ['stop-policy', 'warning', /^running vda runs without/, /running/],
      ['permissions', 'error', /virsh is version 8\.1\.0/, /libvirt-client/],
      ['file-owners', 'warning', /mirror of faulty vda/, /^chown \d+:\d+ \/.*mirror\.raw$/],
      ['copies', 'warning', /the mirror of faulty vdd, '.*gone\.raw', can't be read/, /virt-cdp status faulty/],
      ['durability', 'warning', /mirror of faulty vdb: .* lies in memory \(tmpfs\)/, /findmnt/],
      ['durability', 'warning', /mirror of faulty vdc: .* offers no flush/, /nbdinfo/],
      ['primaries', 'warning', /primary of faulty vdb, on ISCSI/, /iscsiadm/],
      ['primaries', 'warning', /primary of faulty vdc, on RBD/, /rados_osd_op_timeout/],
      ['primaries', 'warning', /primary of faulty vdd, on NFS/, /softerr/],
      ['space', 'warning', /new primary of well vda has no room/, /room/],
      ['clock', 'warning', /not synchronized/, /set-ntp/],
    ]);

    const config = readFileSync(agent.configPath);
    appendFileSync(agent.configPath, '\nno_such_key = 1\n');
    assertFound(await ask(), [
      ['configuration', 'error', /no_such_key/, /--check/],
      ['durability', 'warning', /mirror of faulty vdc/, /nbdinfo/],
    ]);
    await lab.libvirtd.stop();
    await waitFor(
      'the agent to miss libvirt',
      async () => (await ask()).some(({ check, what }) => check === 'agent' && /libvirt does not answer/.test(what)),
      patienceMs,
    );
    assertFound(await ask(), [['libvirt', 'error', /libvirt does not answer/, /systemctl status libvirtd/]]);
    await lab.libvirtd.restart();

    // The agent would put back what a definition lacks.
    await agent.kill('SIGTERM');
    assertFound(await ask(), [['store', 'unknown', /where the records are is not known/, /configuration/]]);
    writeFileSync(agent.configPath, config);
    await redefine(redefined.replace(/ error_policy='stop' rerror_policy='stop'(?=[^]*? dev='vda')/, ''));
    writeFileSync(join(storeDir, 'domains', 'torn.json'), '{');
    const memoryStore = lab.path('store');
    mkdirSync(memoryStore);
    await inside(
      'sh',
      '-c',
      'mount -t tmpfs m "$1" && cp -a "$2/." "$1" && mount --bind "$1" "$2"',
      'sh',
      memoryStore,
      storeDir,
    );
    writeFileSync(join(folder, 'old-qemu'), '');
    assertFound(await ask(), [
      ['agent', 'error', /does not answer/, /systemctl enable --now virt-cdpd/],
      ['stop-policy', 'warning', /^faulty vda is defined without/, /virsh edit faulty/],
      ['store', 'error', /torn\.json/, /restored/],
      ['store', 'error', /is in memory \(tmpfs\)/, /store/],
      ['emulator', 'error', /is version 5\.2\.0/, /upgrade QEMU/],
    ]);
  });

  async function redefine(xml: string): Promise<void> {
    const path = join(scene.lab.root, 'redefined.xml');
    writeFileSync(path, xml);
    await scene.lab.virsh('define', path);
  }

  /** An NBD server as some are: it takes writes and knows no flush. @returns its URI */
  async function serveWithoutFlush(): Promise<string> {
    const socket = join(folder, 'flushless.sock');
    const plugin = ['get_size=echo 67108864', 'pread=head -c $3 /dev/zero', 'pwrite=cat >/dev/null'];
    const server = new Daemon('nbdkit', ['-f', '-U', socket, '-e', 'x', 'eval', ...plugin], {
      logPath: join(folder, 'flushless.log'),
    });
    others.push(server);
    await waitFor(
      'the NBD server without flush',
      () => isListening({ path: socket }),
      patienceMs,
      () => server.logTail(),
    );
    return `nbd+unix:///x?socket=${socket}`;
  }

  /** In this libvirtd's namespace QEMU has no quorum driver; and is of old, once the file old-qemu is there. */
  async function plantEmulator(): Promise<void> {
    const path = '/usr/bin/qemu-system-x86_64';
    const { namespace } = scene.lab.libvirtd;
    // QEMU looks for its modules from where it lies, so it is put in the place of one beside it.
    const real = '/usr/bin/qemu-system-i386';
    const script = `#!/bin/sh
case "$*" in
*--version*) [ ! -e ${folder}/old-qemu ] || { echo 'QEMU emulator version 5.2.0'; exit; } ;;
*driver=quorum*) echo "Unknown driver 'quorum'" >&2; exit 1 ;;
esac
exec ${real} "$@"
`;
    writeFileSync(join(folder, 'qemu.sh'), script, { mode: 0o755 });
    const mounts = `mount --bind ${path} ${real} && mount --bind ${folder}/qemu.sh ${path}`;
    await must(...namespace.command('sh', '-c', mounts));
  }
});
