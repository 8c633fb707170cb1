import { randomUUID } from 'node:crypto';
import {
  chmodSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { isListening } from './listening.ts';
import { MountNamespace } from './mount-namespace.ts';
import { Daemon, type Finished, run } from './run.ts';
import { waitFor } from './wait.ts';

/** libvirt's own folders, and what stands for them under the scratch root. */
const folders = {
  '/etc/libvirt': 'etc',
  '/run/libvirt': 'run',
  '/var/lib/libvirt': 'lib',
  '/var/log/libvirt': 'log',
  '/var/cache/libvirt': 'cache',
};

/** No systemd, no security modules, no virtlogd: facts from libvirt's qemu.conf, tried in the design's lab page. */
const qemuConf = (qemuAs: QemuAs, certificates: string): string => `security_driver = "none"
cgroup_controllers = []
stdio_handler = "file"
nbd_tls_x509_cert_dir = "${certificates}"
${qemuUsers[qemuAs]}`;

/**
 * `distribution`: as packages set it, a user of its own, who sees a /dev of its own and the files that libvirt gives it. `neighbour`: the
 * same for two hosts on one machine, who would contest the owners that each remembers of the guest's console.
 */
export type QemuAs = 'root' | 'distribution' | 'neighbour';

const userOfItsOwn = `user = "libvirt-qemu"
group = "libvirt-qemu"
namespaces = [ "mount" ]
`;

const qemuUsers: Record<QemuAs, string> = {
  root: `user = "root"
group = "root"
namespaces = []
remember_owner = 0
`,
  distribution: userOfItsOwn,
  neighbour: `${userOfItsOwn}remember_owner = 0
`,
};

const libvirtdConf = (hostUuid: string): string => `host_uuid = "${hostUuid}"
auth_unix_ro = "none"
auth_unix_rw = "none"
`;

/**
 * What libvirt found out about this machine's QEMU, kept from one laboratory to the next because asking takes 3 s. libvirt
 * itself notices when QEMU or libvirt has changed since.
 */
const capabilities = join(tmpdir(), 'virt-cdp-qemu-capabilities');

/**
 * A libvirtd of one's own: in its own mount namespace, on scratch folders, unseen by the host's. All its files are under
 * `root`, readable from outside. Whatever it starts ends with `close()`, or with the process that called `start()`.
 */
export class Libvirtd {
  readonly root: string;
  readonly namespace: MountNamespace;
  #daemon: Daemon | undefined;

  private constructor(root: string, namespace: MountNamespace) {
    this.root = root;
    this.namespace = namespace;
  }

  static async start({ qemuAs = 'root' }: { qemuAs?: QemuAs } = {}): Promise<Libvirtd> {
    const root = mkdtempSync(join(tmpdir(), 'virt-cdp-lab-'));
    if (qemuAs !== 'root') chmodSync(root, 0o711);
    for (const folder of Object.values(folders)) mkdirSync(join(root, folder));
    mkdirSync(join(root, 'etc/hooks'));
    // libvirtd does not start if the folder is not there.
    mkdirSync(join(root, 'certificates'));
    writeFileSync(join(root, 'etc/qemu.conf'), qemuConf(qemuAs, join(root, 'certificates')));
    writeFileSync(join(root, 'etc/libvirtd.conf'), libvirtdConf(randomUUID()));
    if (existsSync(capabilities)) cpSync(capabilities, join(root, 'cache/qemu/capabilities'), { recursive: true });

    const namespace = await MountNamespace.create(
      root,
      Object.entries(folders).map(([target, folder]) => ({ source: join(root, folder), target })),
    );
    const libvirtd = new Libvirtd(root, namespace);
    try {
      await libvirtd.#run();
    } catch (error) {
      await libvirtd.close();
      throw error;
    }
    return libvirtd;
  }

  /** libvirtd's read-write socket, as seen from outside. */
  get socket(): string {
    return join(this.root, 'run/libvirt-sock');
  }

  /** Where libvirt looks for the certificates with which QEMU speaks to NBD servers; empty at first. */
  get certificates(): string {
    return join(this.root, 'certificates');
  }

  get uri(): string {
    return `qemu:///system?socket=${this.socket}`;
  }

  /** Where libvirt looks for hook scripts: /etc/libvirt/hooks to libvirtd itself. */
  get hooksDir(): string {
    return join(this.root, 'etc/hooks');
  }

  get running(): boolean {
    return this.#daemon?.running === true;
  }

  get pid(): number {
    if (this.#daemon === undefined) throw new Error('libvirtd is not running');
    return this.#daemon.pid;
  }

  async #run(): Promise<void> {
    const [program, ...args] = this.namespace.command('libvirtd', '--pid-file', '/run/libvirt/libvirtd.pid');
    this.#daemon = new Daemon(program, args, { logPath: join(this.root, 'log/libvirtd.log') });
    const daemon = this.#daemon;
    await waitFor(
      'libvirtd to accept connections',
      async () => {
        if (!daemon.running) throw new Error(`libvirtd ended\n${daemon.logTail()}`);
        return isListening({ path: this.socket });
      },
      30_000,
      () => daemon.logTail(),
    );
  }

  /** Ends libvirtd alone: its QEMUs live on. */
  async stop(signal: 'SIGTERM' | 'SIGKILL' = 'SIGTERM'): Promise<void> {
    await this.#daemon?.end(signal);
    this.#daemon = undefined;
  }

  /** Ends libvirtd alone, and starts it again in the same namespace, where it finds its QEMUs. */
  async restart(signal: 'SIGTERM' | 'SIGKILL' = 'SIGTERM'): Promise<void> {
    await this.stop(signal);
    await this.#run();
  }

  /** Makes libvirtd read its configuration again, and notice a first hook. */
  reload(): void {
    process.kill(this.pid, 'SIGHUP');
  }

  /** virsh on this libvirtd, whatever its exit code. */
  async virsh(...args: string[]): Promise<Finished> {
    return run('virsh', ['-q', '-c', this.uri, ...args]);
  }

  /** virsh that must succeed; its stdout without white space around it. */
  async mustVirsh(...args: string[]): Promise<string> {
    const { code, stdout, stderr } = await this.virsh(...args);
    if (code !== 0) throw new Error(`virsh ${args.join(' ')}: ${stderr.trim()}`);
    return stdout.trim();
  }

  /** The pid of a running domain's QEMU, from libvirt's pid file: known even while libvirtd is down. */
  qemuPid(domain: string): number {
    return Number(readFileSync(join(this.root, 'run/qemu', `${domain}.pid`), 'utf8'));
  }

  /** Ends every domain and libvirtd, by force, and removes the scratch folder. */
  async close(): Promise<void> {
    try {
      await this.stop('SIGKILL');
      if (!existsSync(capabilities)) this.#keepCapabilities();
    } finally {
      await this.namespace.close();
      rmSync(this.root, { recursive: true, force: true });
    }
  }

  /** At once or not at all: another laboratory may be doing the same. */
  #keepCapabilities(): void {
    const found = join(this.root, 'cache/qemu/capabilities');
    if (!existsSync(found)) return;
    const copy = mkdtempSync(`${capabilities}-`);
    cpSync(found, copy, { recursive: true });
    try {
      renameSync(copy, capabilities);
    } catch {
      rmSync(copy, { recursive: true });
    }
  }
}
