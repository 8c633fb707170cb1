import assert from 'node:assert/strict';
import { chmodSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { delimiter, join } from 'node:path';
import { consoleBlocks, notSaid, type ConsoleBlock } from '../docs/console.ts';
import type { Guest } from '../lab/guest.ts';
import { must, run } from '../lab/run.ts';
import { createImage } from '../lab/storage.ts';
import { goesOn } from './copies-hold.ts';
import { patienceMs, setScene, waitState } from './scene.ts';

const checkout = join(import.meta.dirname, '../..');
const page = (name: string): ConsoleBlock[] => consoleBlocks(readFileSync(join(checkout, 'docs', name), 'utf8'));

/** The pages' domain, its disk, and where the server of its mirror is: an address of this host that no other test uses. */
const name = 'web1';
const image = '/var/lib/libvirt/images/web1.qcow2';
const storage1 = `127.${[1, 2, 3].map(() => 1 + Math.floor(Math.random() * 254)).join('.')}`;

describe('the pages for administrators', function () {
  this.timeout(180_000);
  const scene = setScene();
  let guest: Guest;
  let bin: string;

  before(async function () {
    this.timeout(patienceMs);
    const { lab, agent } = scene;
    const { root, namespace } = lab.libvirtd;
    const inside = (script: string, ...args: string[]): Promise<string> =>
      must(...namespace.command('sh', '-c', script, 'sh', ...args));
    bin = join(root, 'bin');
    for (const folder of ['bin', 'srv', 'lib/images']) mkdirSync(join(root, folder), { recursive: true });
    writeFileSync(join(root, 'hosts'), `127.0.0.1 localhost\n${storage1} storage1\n`);
    await inside('mount --bind "$1/hosts" /etc/hosts && mount --bind "$1/srv" /srv', root);
    const program = join(checkout, 'dist/virt-cdp.js');
    writeFileSync(
      join(bin, 'virt-cdp'),
      `#!/bin/sh\nexec '${process.execPath}' '${program}' --socket '${agent.socket}' "$@"\n`,
    );
    chmodSync(join(bin, 'virt-cdp'), 0o755);

    await createImage(join(root, 'lib/images/web1.qcow2'), 'qcow2', 64 << 20);
    guest = await scene.residentGuest({
      name,
      cmdline: 'witness.rate=50',
      disks: [{ dev: 'vda', bus: 'virtio', image: { format: 'qcow2', file: image }, cache: 'none', stopPolicy: false }],
    });
    await agent.installHook();
    lab.libvirtd.reload();
  });

  /** One line, as root types it on the host, or on storage1, which is the same here. */
  async function type(line: string): Promise<string> {
    const { namespace } = scene.lab.libvirtd;
    const [program, ...args] = namespace.command('sh', '-c', line);
    const env = {
      ...process.env,
      PATH: [bin, process.env['PATH']].join(delimiter),
      LIBVIRT_DEFAULT_URI: 'qemu:///system',
    };
    const { code, stdout, stderr } = await run(program, args, { env });
    assert.equal(code, 0, `${line}: exit ${code}\n${stderr}${stdout}`);
    return stdout + stderr;
  }

  async function typeAll({ commands }: ConsoleBlock): Promise<void> {
    for (const { command, output } of commands) {
      const said = await type(command);
      const missing = notSaid(output, said);
      assert.equal(missing, null, `${command} does not say '${missing}', but:\n${said}`);
      // Whoever has pressed the power button waits until the domain is off.
      if (command === `virsh shutdown ${name}`) await guest.waitState('shut off', patienceMs);
    }
  }

  it('lead to a protected domain: every line of docs/getting-started.md', async () => {
    for (const block of page('getting-started.md')) if (block.heading !== '1. Install') await typeAll(block);
    await waitState(scene.agent, name, 'protected');
    await goesOn(guest);
  });

  const cdp = (...args: string[]): Promise<string> => scene.agent.mustCdp(...args);

  /** The server of the mirror, which the pages have started as a daemon, dies. */
  async function killServer(): Promise<void> {
    const namespace = ['--ns', String(scene.lab.libvirtd.pid), '--nslist', 'mnt'];
    const pids = (await must('pgrep', ...namespace, '--full', '^nbdkit -i storage1')).trim().split('\n').map(Number);
    for (const pid of pids) process.kill(pid, 'SIGKILL');
  }

  /** How the domain gets to where a section of the runbook begins. */
  const situations: Record<string, () => Promise<unknown>> = {
    exposed: async () => {
      await killServer();
      await waitState(scene.agent, name, 'exposed');
    },
    'Onto a new disk': async () => {
      rmSync(join(scene.lab.root, 'lib/images/web1.qcow2'));
      await waitState(scene.agent, name, 'failed-over');
    },
    'The old disk is back': () => cdp('failover', name),
    'rebuilding, syncing': () => cdp('resync', name, '--full', '--no-wait'),
    held: () => cdp('hold', name),
    'the domain is paused, and not by us': () => guest.suspend(),
    "runs without error_policy='stop'": async () => {
      await cdp('unprotect', name);
      await guest.shutdown();
      await guest.start();
      await cdp(
        'protect',
        name,
        '--disk',
        'vda',
        '--mirror',
        'nbd://storage1/web1-vda',
        '--overwrite-mirror',
        '--no-wait',
      );
      await waitState(scene.agent, name, 'waiting');
    },
    'No current copy ever comes back': async () => {
      await waitState(scene.agent, name, 'protected');
      await cdp('failover', name);
      await killServer();
      await waitState(scene.agent, name, 'broken');
    },
    stopped: async () => {
      await goesOn(guest);
      await guest.shutdown();
    },
  };

  it('are right in each state: every line of docs/runbook.md', async () => {
    const left = new Set(Object.keys(situations));
    for (const block of page('runbook.md')) {
      if (left.delete(block.heading)) await situations[block.heading]!();
      await typeAll(block);
    }
    assert.deepEqual([...left], [], 'headings that the page does not have');
    assert.deepEqual(guest.witness.errors, []);
    await goesOn(guest);
  });
});
