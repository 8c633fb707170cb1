import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { copyFile, mkdir, mkdtemp, rename, rm } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { Daemon, must, run, type Finished } from '../lab/run.ts';
import { waitFor } from '../lab/wait.ts';

export const suites = ['bookworm', 'trixie'] as const;

export type Suite = (typeof suites)[number];

/** What virt-cdp's package depends on and recommends, an init, what a guest needs, and rpm; nothing of virt-cdp. */
const packages =
  'systemd systemd-sysv dbus nodejs libvirt-daemon-system libvirt-clients qemu-system-x86 qemu-utils libnbd-bin iproute2 rpm apparmor'.split(
    ' ',
  );

/** Arguments: the folder, the suite, the packages. Daemons are not started where no init runs. */
const makeRoot = `
set -e
root=$1 suite=$2; shift 2
debootstrap --variant=minbase "$suite" "$root" >"$root.log" 2>&1
printf '#!/bin/sh\\nexit 101\\n' >"$root/usr/sbin/policy-rc.d"
chmod +x "$root/usr/sbin/policy-rc.d"
mount --bind /proc "$root/proc"
export DEBIAN_FRONTEND=noninteractive
chroot "$root" apt-get -q -y --no-install-recommends install "$@" </dev/null >>"$root.log" 2>&1
rm "$root/usr/sbin/policy-rc.d"
chroot "$root" apt-get clean
`;

/** Arguments: the scratch folder, the root below it. As the first process of its namespaces: with it all ends. */
const bootRoot = `
mount -t overlay overlay -o "lowerdir=$2,upperdir=$1/upper,workdir=$1/work" "$1/root" || exit 1
exec systemd-nspawn --quiet --register=no --keep-unit --private-network --capability=all --resolv-conf=off \
  --machine="$(basename "$1")" --directory="$1/root" --boot
`;

/**
 * A clean Debian with the packages that virt-cdp's wants. Made once, from the distribution's archive, and kept under
 * the temporary directory, by what went into it.
 */
async function cleanRoot(suite: Suite): Promise<string> {
  const key = createHash('sha256').update(makeRoot).update(packages.join()).digest('hex').slice(0, 12);
  const folder = join('/var/tmp', `virt-cdp-root-${suite}-${key}`);
  if (existsSync(folder)) return folder;
  const scratch = await mkdtemp(`${folder}-`);
  try {
    const root = join(scratch, suite);
    const args = ['--mount', 'sh', '-c', makeRoot, 'sh', root, suite, ...packages];
    const { code, stderr } = await run('unshare', args, { timeoutMs: 600_000 });
    if (code !== 0) throw new Error(`no clean ${suite}: ${stderr}\n${await must('tail', '-n', '30', `${root}.log`)}`);
    await rename(root, folder);
  } finally {
    await rm(scratch, { recursive: true, force: true });
  }
  return folder;
}

/** unshare(1)'s: whoever kills it, its child dies too. */
const namespaces = ['--mount', '--pid', '--fork', '--kill-child', '--mount-proc'];

/** A clean Debian with systemd as its init, in namespaces of its own: what it does to its disk ends with it. */
export class Machine {
  readonly #scratch: string;
  readonly #clean: string;
  #container: Daemon;
  #init = '';

  private constructor(scratch: string, clean: string) {
    this.#scratch = scratch;
    this.#clean = clean;
    this.#container = this.#switchOn();
  }

  static async boot(suite: Suite): Promise<Machine> {
    const clean = await cleanRoot(suite);
    const scratch = await mkdtemp(join('/var/tmp', `virt-cdp-machine-${suite}-`));
    for (const part of ['upper', 'work', 'root']) await mkdir(join(scratch, part));
    const machine = new Machine(scratch, clean);
    try {
      await machine.#waitUntilUp();
    } catch (error) {
      await machine.close();
      throw error;
    }
    return machine;
  }

  #switchOn(): Daemon {
    const args = [...namespaces, 'sh', '-c', bootRoot, 'sh', this.#scratch, this.#clean];
    const env = { ...process.env, UNIFIED_CGROUP_HIERARCHY: '1' };
    return new Daemon('unshare', args, { logPath: join(this.#scratch, 'console.log'), env });
  }

  /** Its `degraded` is no matter: a container has no hardware. */
  async #waitUntilUp(): Promise<void> {
    await waitFor(
      'the machine to boot',
      async () => {
        if (!this.#container.running) throw new Error(`the machine did not start: ${this.#container.logTail()}`);
        const nspawn = await childOf(String(this.#container.pid));
        this.#init = nspawn === '' ? '' : await childOf(nspawn);
        if (this.#init === '') return false;
        const { stdout } = await this.run('systemctl is-system-running');
        return /^(running|degraded)/.test(stdout);
      },
      120_000,
      () => this.#container.logTail(),
    );
  }

  /** It is switched off and on again, with its disk as it is. A reboot systemd-nspawn can't do with the host's /run in a namespace. */
  async reboot(): Promise<void> {
    // The shell that asks may not live to say so.
    await this.run('systemctl poweroff');
    const container = this.#container;
    await waitFor(
      'the machine to go down',
      () => Promise.resolve(!container.running),
      120_000,
      () => container.logTail(),
    );
    await this.#removeTraces();
    this.#container = this.#switchOn();
    await this.#waitUntilUp();
  }

  /** A shell script in it, as root. */
  async run(script: string): Promise<Finished> {
    const environment = [
      'env',
      '-i',
      'PATH=/usr/sbin:/usr/bin:/sbin:/bin',
      'HOME=/root',
      'DEBIAN_FRONTEND=noninteractive',
    ];
    const args = ['--target', this.#init, '--all', ...environment, 'sh', '-c', script];
    return run('nsenter', args, { timeoutMs: 180_000 });
  }

  /** As `run`, but must succeed; its stdout. */
  async must(script: string): Promise<string> {
    const { code, stdout, stderr } = await this.run(script);
    if (code === 0) return stdout;
    const journal = await this.run('journalctl --no-pager -n 60');
    throw new Error(`${script}: exit ${code}\n${stderr}${stdout}\n${journal.stdout}`);
  }

  /** Copies a file of the host into the machine's /srv. @returns its path there */
  async put(path: string): Promise<string> {
    await copyFile(path, `/proc/${this.#init}/root/srv/${basename(path)}`);
    return `/srv/${basename(path)}`;
  }

  async close(): Promise<void> {
    await this.#container.end('SIGKILL');
    await rm(this.#scratch, { recursive: true, force: true });
    await this.#removeTraces();
  }

  async #removeTraces(): Promise<void> {
    await rm(join('/run/systemd/nspawn/propagate', basename(this.#scratch)), { recursive: true, force: true });
  }
}

/** Empty if there is none yet. */
async function childOf(pid: string): Promise<string> {
  return (await run('pgrep', ['--parent', pid])).stdout.trim();
}
