import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import type { DomainStatus } from '../../src/protection/model.ts';
import { consoleBlocks } from '../docs/console.ts';
import { domainXml } from '../lab/domain-xml.ts';
import { guestKernel } from '../lab/initramfs.ts';
import { must, run } from '../lab/run.ts';
import { waitFor } from '../lab/wait.ts';
import { Machine, suites } from './machine.ts';

const checkout = join(import.meta.dirname, '../..');
const patienceMs = 120_000;

/** The profile that libvirt makes a domain's of, with what the packages add to it; a kernel with AppArmor is not needed to read it. */
const readProfile =
  'cd /etc/apparmor.d && apparmor_parser --skip-kernel-load --skip-cache --features-file abi/3.0 libvirt/TEMPLATE.qemu';

/** The lines that a page tells the administrator to type, under one of its headings. */
function linesOf(page: string, under: string): string[] {
  const blocks = consoleBlocks(readFileSync(join(checkout, page), 'utf8')).filter(({ heading }) => heading === under);
  const lines = blocks.flatMap(({ commands }) => commands.map(({ command }) => command));
  assert.ok(lines.length > 0, `${page} does not say what to type under ${under}`);
  return lines;
}

describe('the packages', function () {
  this.timeout(900_000);
  let folder: string;
  let deb: string;
  let newerDeb: string;
  let rpm: string;

  before(async () => {
    await must('sh', join(checkout, 'packaging/build.sh'));
    const made = join(checkout, 'dist/packages');
    const named = async (suffix: string): Promise<string> =>
      join(made, (await readdir(made)).find((name) => name.endsWith(suffix)) ?? `no ${suffix}`);
    [deb, rpm] = [await named('.deb'), await named('.rpm')];
    folder = await mkdtemp(join(tmpdir(), 'virt-cdp-packages-'));
    newerDeb = await makeNewer(deb, folder);
  });

  after(async () => {
    await rm(folder, { recursive: true, force: true });
  });

  it('are installed by the line that README.md has, too', () => {
    for (const line of linesOf('docs/getting-started.md', '1. Install'))
      assert.ok(linesOf('README.md', 'Protect a domain').includes(line), line);
  });

  it('have no errors by lintian', async () => {
    const { stdout } = await run('lintian', ['--fail-on', 'error', deb], {
      env: { ...process.env, TMPDIR: folder },
    });
    assert.doesNotMatch(stdout, /^E:/m);
  });

  for (const suite of suites) {
    it(`are installed on ${suite}, upgraded under a protected domain, and removed only when none is protected`, async () => {
      const machine = await Machine.boot(suite);
      try {
        await putGuest(machine);
        await machine.put(deb);
        for (const line of linesOf('docs/getting-started.md', '1. Install')) await machine.must(`cd /srv && ${line}`);
        assert.match(await machine.must('systemctl is-active virt-cdpd'), /^active/);

        // Its hook is in force at once: libvirt was told of it.
        await machine.must('virsh define /srv/web.xml && virt-cdp protect web --disk vda --mirror nbd://127.0.0.1/web');
        await machine.must('virsh start web && ls /var/lib/virt-cdp/starts/* && virsh destroy web');

        await assertBootOrder(machine);
        await startMirror(machine);
        await machine.must('virsh start web');
        await waitState(machine, 'protected');
        assert.match(await machine.must(`${readProfile} --preprocess`), /^\/run\/virt-cdp\//m);
        await machine.must(`${readProfile} --stdout >/dev/null`);
        const pid = await machine.must('cat /run/libvirt/qemu/web.pid');
        const agent = await machine.must('systemctl show --property MainPID virt-cdpd');

        await machine.must(`apt-get -q -y install ${await machine.put(newerDeb)}`);
        assert.notEqual(
          await machine.must('systemctl show --property MainPID virt-cdpd'),
          agent,
          'the agent is the new one',
        );
        await waitState(machine, 'protected');
        assert.equal(await machine.must('cat /run/libvirt/qemu/web.pid'), pid, 'the guest runs on');

        await machine.must('kill -KILL $(cat /run/mirror.pid)');
        await waitState(machine, 'exposed');
        await assertJournal(machine);
        await startMirror(machine);
        await waitState(machine, 'protected');

        // An agent that does not go on is replaced: its watchdog here has less patience than the package's.
        await machine.must(
          'mkdir -p /run/systemd/system/virt-cdpd.service.d && cd /run/systemd/system/virt-cdpd.service.d && ' +
            'printf "[Service]\\nWatchdogSec=3\\n" >watchdog.conf && systemctl daemon-reload && systemctl restart virt-cdpd',
        );
        const stuck = await machine.must('systemctl show --property MainPID --value virt-cdpd');
        await machine.must(`kill -STOP ${stuck}`);
        await waitFor(
          'systemd to replace the agent',
          async () => {
            const now = await machine.must(
              'systemctl show --property MainPID --property ActiveState --value virt-cdpd',
            );
            return !now.includes(stuck.trim()) && now.includes('\nactive');
          },
          patienceMs,
        );
        await waitState(machine, 'protected');

        const refused = await machine.run('apt-get -q -y remove virt-cdp');
        assert.notEqual(refused.code, 0);
        assert.match(refused.stderr + refused.stdout, /virt-cdp unprotect/);
        await waitState(machine, 'protected');

        await machine.must('virt-cdp unprotect web && apt-get -q -y remove virt-cdp');
        assert.equal(await machine.must('cat /run/libvirt/qemu/web.pid'), pid, 'the guest runs on');
        await machine.must('test ! -e /etc/libvirt/hooks/qemu.d/50-virt-cdp && test -e /etc/virt-cdp/virt-cdp.toml');
        await machine.must('! grep -r virt-cdp /etc/apparmor.d/local');
        await machine.must('apt-get -q -y purge virt-cdp && test ! -e /etc/virt-cdp && test ! -e /var/lib/virt-cdp');
        await machine.must('virsh destroy web && virsh start web');
      } finally {
        await machine.close();
      }
    });
  }

  it('as an RPM are installed, verified, run and erased', async () => {
    const machine = await Machine.boot('bookworm');
    try {
      // What it depends on is there, but by Debian's packages, of which rpm does not know.
      await machine.must(`rpm --install --nodeps ${await machine.put(rpm)} && rpm --verify --nodeps virt-cdp`);
      assert.match(await machine.must('systemctl is-active virt-cdpd && virt-cdp list'), /^active\nno domain/);
      await machine.must('test -x /etc/libvirt/hooks/qemu.d/50-virt-cdp && rpm --erase virt-cdp');
      await machine.must('test ! -e /etc/libvirt/hooks/qemu.d/50-virt-cdp && test ! -e /usr/bin/virt-cdp');
    } finally {
      await machine.close();
    }
  });
});

/** The same package, of a later version. */
async function makeNewer(deb: string, folder: string): Promise<string> {
  const tree = join(folder, 'tree');
  await must('dpkg-deb', '--raw-extract', deb, tree);
  await must('sed', '-i', 's/^Version: .*/&.99/', join(tree, 'DEBIAN/control'));
  const newer = join(folder, basename(deb).replace('_all', '.99_all'));
  await must('dpkg-deb', '--root-owner-group', '--build', tree, newer);
  return newer;
}

/** A domain as an administrator has it, with its disk, and a mirror that a server on this machine exports. */
async function putGuest(machine: Machine): Promise<void> {
  const { kernel, initrd } = await guestKernel();
  const guest = { kernel: await machine.put(kernel), initrd: await machine.put(initrd) };
  const file = '/var/lib/libvirt/images/web.raw';
  const xml = domainXml(guest, {
    name: 'web',
    disks: [{ dev: 'vda', bus: 'virtio', image: { format: 'raw', file }, stopPolicy: false }],
    cmdline: 'witness.rate=20',
    serialPath: '/var/lib/libvirt/images/web.console',
  });
  const folder = await mkdtemp(join(tmpdir(), 'virt-cdp-guest-'));
  try {
    await writeFile(join(folder, 'web.xml'), xml);
    await machine.put(join(folder, 'web.xml'));
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
  await machine.must(
    `chmod 755 /srv && touch /var/lib/libvirt/images/web.console && truncate -s 32M ${file} /srv/mirror.raw`,
  );
  await startMirror(machine);
}

/** Of a libvirt with a daemon for each driver, which Debian does not have: the names, by which systemd orders. */
const modular = {
  'virtqemud.socket': '[Socket]\nListenStream=/run/virtqemud-stand-in\n[Install]\nWantedBy=sockets.target\n',
  'virtqemud.service':
    '[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n',
};

/** At a boot the agent is ready before libvirt may start a domain; and so it is stopped after libvirt-guests has stopped the last. */
async function assertBootOrder(machine: Machine): Promise<void> {
  const standIns = Object.keys(modular).join(' ');
  for (const [name, unit] of Object.entries(modular))
    await machine.must(`cat >/etc/systemd/system/${name} <<'END'\n${unit}END`);
  await machine.must(`systemctl enable ${standIns}`);
  await machine.reboot();
  const atUs = async (unit: string, what: 'ActiveEnter' | 'ExecMainStart'): Promise<number> => {
    const us = Number(await machine.must(`systemctl show --value --property ${what}TimestampMonotonic ${unit}`));
    assert.ok(us > 0, `${unit} was not started`);
    return us;
  };
  const [began, ready] = [await atUs('virt-cdpd', 'ExecMainStart'), await atUs('virt-cdpd', 'ActiveEnter')];
  for (const socket of ['libvirtd.socket', 'virtqemud.socket']) {
    const listens = await atUs(socket, 'ActiveEnter');
    assert.ok(listens <= began, `${socket} listened at ${listens} us, the agent began at ${began}`);
  }
  for (const service of ['libvirtd', 'virtqemud', 'libvirt-guests']) {
    const begins = await atUs(service, 'ExecMainStart');
    assert.ok(ready <= begins, `the agent was ready at ${ready} us, ${service} began at ${begins}`);
  }
  const verified = await machine.run('systemd-analyze verify --man=no default.target');
  assert.doesNotMatch(verified.stdout + verified.stderr, /ordering cycle/i);
  await machine.must(
    `systemctl disable --now ${standIns} && cd /etc/systemd/system && rm ${standIns} && systemctl daemon-reload`,
  );
}

/** As sd-daemon(3) numbers them. */
const priorities: Record<string, string> = { error: '3', warn: '4', info: '6', debug: '7' };

/** What the agent has told the machine's journald: each line with its priority and the same keys, the lost mirror among them. */
async function assertJournal(machine: Machine): Promise<void> {
  const text = await machine.must(
    'journalctl _SYSTEMD_UNIT=virt-cdpd.service -o json --output-fields=MESSAGE,PRIORITY',
  );
  const entries = text
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as { MESSAGE: string; PRIORITY: string });
  const told = entries.map(({ MESSAGE, PRIORITY }) => {
    const line = JSON.parse(MESSAGE) as Record<string, unknown>;
    for (const key of ['timestamp', 'level', 'message']) assert.equal(typeof line[key], 'string', MESSAGE);
    assert.equal(PRIORITY, priorities[String(line['level'])], MESSAGE);
    return line;
  });
  for (const line of linesOf('docs/monitoring.md', 'The log'))
    assert.match(await machine.must(line.replace('web1', 'web')), /"message":"mirror-lost"/);
  const lost = told.filter(({ message }) => message === 'mirror-lost');
  assert.deepEqual(
    lost.map(({ domain, disk }) => [domain, disk]),
    [['web', 'vda']],
  );
}

async function startMirror(machine: Machine): Promise<void> {
  await machine.must('qemu-nbd --fork --pid-file=/run/mirror.pid --persistent -x web -f raw /srv/mirror.raw');
}

async function waitState(machine: Machine, state: DomainStatus['state']): Promise<void> {
  let last = '';
  await waitFor(
    `web to be ${state}`,
    async () => {
      last = (await machine.run('virt-cdp status web --json')).stdout;
      return last.startsWith('[') && (JSON.parse(last) as DomainStatus[])[0]?.state === state;
    },
    patienceMs,
    async () => `${last}\n${(await machine.run('journalctl --no-pager -n 60; virt-cdp events')).stdout}`,
  );
}
