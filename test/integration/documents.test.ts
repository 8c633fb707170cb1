import assert from 'node:assert/strict';
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { consoleBlocks, type ConsoleBlock } from '../docs/console.ts';
import type { Guest } from '../lab/guest.ts';
import { must, run } from '../lab/run.ts';
import { createImage } from '../lab/storage.ts';
import { goesOn } from './copies-hold.ts';
import { events, patienceMs, setScene, waitState } from './scene.ts';
import { Terminal } from './terminal.ts';

const checkout = join(import.meta.dirname, '../..');
const page = (path: string): ConsoleBlock[] => consoleBlocks(readFileSync(join(checkout, path), 'utf8'));

/** The pages' domain, its disk, and where the server of its mirror is: an address of this host that no other test uses. */
const name = 'web1';
const image = '/var/lib/libvirt/images/web1.qcow2';
const storage1 = `127.${[1, 2, 3].map(() => 1 + Math.floor(Math.random() * 254)).join('.')}`;

describe('the pages for administrators', function () {
  this.timeout(180_000);
  const scene = setScene();
  let guest: Guest;
  let terminal: Terminal;

  before(async function () {
    this.timeout(patienceMs);
    const { lab, agent } = scene;
    const { root, namespace } = lab.libvirtd;
    const inside = (script: string, ...args: string[]): Promise<string> =>
      must(...namespace.command('sh', '-c', script, 'sh', ...args));
    for (const folder of ['srv', 'lib/images']) mkdirSync(join(root, folder), { recursive: true });
    writeFileSync(join(root, 'hosts'), `127.0.0.1 localhost\n${storage1} storage1\n`);
    await inside('mount --bind "$1/hosts" /etc/hosts && mount --bind "$1/srv" /srv', root);

    await createImage(join(root, 'lib/images/web1.qcow2'), 'qcow2', 64 << 20);
    guest = await scene.residentGuest({
      name,
      cmdline: 'witness.rate=50',
      disks: [{ dev: 'vda', bus: 'virtio', image: { format: 'qcow2', file: image }, cache: 'none', stopPolicy: false }],
    });
    await agent.installHook();
    lab.libvirtd.reload();
    terminal = new Terminal(scene, {
      instead: { '/run/virt-cdp/virt-cdp.sock': agent.socket },
      // Whoever has pressed the power button waits until the domain is off.
      typed: async (line) => line === `virsh shutdown ${name}` && guest.waitState('shut off', patienceMs),
    });
  });

  it('lead to a protected domain: every line of docs/getting-started.md', async () => {
    for (const block of page('docs/getting-started.md'))
      if (block.heading !== '1. Install') await terminal.typeAll(block);
    await waitState(scene.agent, name, 'protected');
    await goesOn(guest);
  });

  const cdp = (...args: string[]): Promise<string> => scene.agent.mustCdp(...args);

  /** The server of the mirror, which the pages have started as a daemon, dies. */
  async function killServer(): Promise<void> {
    const namespace = ['--ns', String(scene.lab.libvirtd.pid), '--nslist', 'mnt'];
    const { stdout } = await run('pgrep', [...namespace, '--full', '^nbdkit -i storage1']);
    for (const pid of stdout.trim().split('\n').filter(Boolean)) process.kill(Number(pid), 'SIGKILL');
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
      await waitState(scene.agent, name, 'protected');
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
    for (const block of page('docs/runbook.md')) {
      if (left.delete(block.heading)) await situations[block.heading]!();
      await terminal.typeAll(block);
    }
    assert.deepEqual([...left], [], 'headings that the page does not have');
    assert.deepEqual(guest.witness.errors, []);
  });

  /** Back to a domain that runs as it was defined by its owner, and a storage server without exports. */
  async function asBefore(): Promise<void> {
    await killServer();
    rmSync(join(scene.lab.root, 'srv/mirrors'), { recursive: true, force: true });
    await terminal.type(`virsh destroy ${name}`);
    await terminal.type(`virsh start ${name}`);
  }

  it('protect a domain that runs without the stop policy: every line of README.md', async () => {
    await asBefore();
    for (const block of page('README.md').filter(({ heading }) => heading === 'Protect a domain'))
      if (!block.commands.some(({ command }) => command.startsWith('apt '))) await terminal.typeAll(block);
    await waitState(scene.agent, name, 'protected');
    await goesOn(guest);
  });

  it('tell what happened, and how things are: every line of docs/events.md and docs/monitoring.md', async () => {
    for (const block of page('docs/events.md')) await terminal.typeAll(block);
    for (const block of page('docs/monitoring.md')) if (block.heading !== 'The log') await terminal.typeAll(block);
  });

  it('go through the five steps: every line of the first embodiment in docs/embodiments.md', async () => {
    await cdp('unprotect', name);
    await asBefore();
    const completed = async (): Promise<number> => (await events(scene.agent, name, 'rebuild-finished')).length;
    const before = await completed();
    for (const block of page('docs/embodiments.md')) if (block.heading.startsWith('1. ')) await terminal.typeAll(block);
    await waitState(scene.agent, name, 'protected');
    await goesOn(guest);
    assert.equal(await completed(), before + 1);
  });
});
