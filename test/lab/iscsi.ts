import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { freePort, isListening } from './listening.ts';
import type { MountNamespace } from './mount-namespace.ts';
import { Daemon, run } from './run.ts';
import { waitFor } from './wait.ts';

export interface IscsiOptions {
  /** Where its control socket and log are. */
  scratch: string;
  namespace: MountNamespace;
  /** The file that LUN 1 is. */
  file: string;
  /** CHAP; the password has 12 to 16 characters, as RFC 3720 wants it. */
  login: { username: string; password: string };
  /** What the target says of its write cache, and does; default off. */
  writeCache?: boolean;
}

const target = 'iqn.2026-01.org.virt-cdp:lab';

/** A target of one LUN, by a tgtd of its own: a port, a control socket, and accounts that no other one has. */
export class IscsiTarget {
  readonly file: string;
  readonly port: number;
  readonly #options: IscsiOptions;
  #daemon: Daemon | undefined;

  private constructor(options: IscsiOptions, port: number) {
    this.file = options.file;
    this.port = port;
    this.#options = options;
  }

  static async start(options: IscsiOptions): Promise<IscsiTarget> {
    const iscsi = new IscsiTarget(options, await freePort());
    await iscsi.#run();
    return iscsi;
  }

  /** `iscsi://USER@127.0.0.1:PORT/TARGET/1`. */
  get uri(): string {
    return `iscsi://${this.#options.login.username}@127.0.0.1:${this.port}/${target}/1`;
  }

  /** The target's name. */
  get target(): string {
    return target;
  }

  /** libvirt's `<source>`, with the secret of this usage. */
  sourceXml(usage: string): string {
    return (
      `<source protocol='iscsi' name='${target}/1'><host name='127.0.0.1' port='${this.port}'/>` +
      `<auth username='${this.#options.login.username}'><secret type='iscsi' usage='${usage}'/></auth></source>`
    );
  }

  async #run(): Promise<void> {
    const daemon = this.#daemonInside('tgtd', '-f', '-C', '0', '--iscsi', `portal=127.0.0.1:${this.port}`);
    this.#daemon = daemon;
    await waitFor(
      'the iSCSI target',
      async () => {
        if (!daemon.running) throw new Error(`tgtd ended\n${daemon.logTail()}`);
        return isListening({ host: '127.0.0.1', port: this.port });
      },
      10_000,
      () => daemon.logTail(),
    );
    const { login, file, writeCache = false } = this.#options;
    const lun = ['--mode', 'logicalunit', '--tid', '1', '--lun', '1'];
    await this.#admin('--op', 'new', '--mode', 'target', '--tid', '1', '-T', target);
    await this.#admin('--op', 'new', ...lun, '-b', file, '--bsoflags', writeCache ? 'direct' : 'sync');
    // The caching mode page of tgtd's own sbc.c, with and without WCE (0x04).
    const page = `8:0:18:${writeCache ? '0x14' : '0x10'}:0:0xff:0xff:0:0:0xff:0xff:0xff:0xff:0x80:0x14:0:0:0:0:0:0`;
    await this.#admin('--op', 'update', ...lun, '--params', `mode_page=${page}`);
    await this.#admin('--op', 'new', '--mode', 'account', '--user', login.username, '--password', login.password);
    await this.#admin('--op', 'bind', '--mode', 'account', '--tid', '1', '--user', login.username);
    await this.#admin('--op', 'bind', '--mode', 'target', '--tid', '1', '-I', 'ALL');
  }

  /** The sessions break off, and new ones are refused. */
  async kill(): Promise<void> {
    await this.#daemon?.end('SIGKILL');
    this.#daemon = undefined;
  }

  /** From now on no request is answered; connections stay open, and new ones are made. */
  hang(): void {
    this.#signal('SIGSTOP');
  }

  unhang(): void {
    this.#signal('SIGCONT');
  }

  #signal(signal: 'SIGSTOP' | 'SIGCONT'): void {
    if (this.#daemon === undefined) throw new Error('the target is not running');
    process.kill(this.#daemon.pid, signal);
  }

  /** Comes (back) up at the same address, with the same data. */
  async restart(): Promise<void> {
    await this.kill();
    await this.#run();
  }

  async close(): Promise<void> {
    await this.kill();
  }

  #daemonInside(...command: [string, ...string[]]): Daemon {
    const { scratch } = this.#options;
    const [program, ...args] = this.#options.namespace.command(...command);
    return new Daemon(program, args, { logPath: join(scratch, `tgtd-${this.port}.log`), env: this.#env });
  }

  /** tgtd's control socket, without the control port's number (usr/mgmt.c: ipc_init). */
  get #env(): NodeJS.ProcessEnv {
    return { ...process.env, TGT_IPC_SOCKET: join(this.#options.scratch, `tgtd-${this.port}`) };
  }

  async #admin(...args: string[]): Promise<void> {
    const { code, stderr } = await run('tgtadm', ['-C', '0', '--lld', 'iscsi', ...args], { env: this.#env });
    if (code === 0) return;
    const seen = readdirSync(this.#options.scratch).join(' ');
    throw new Error(`tgtadm ${args.join(' ')}: exit ${code}\n${stderr}${seen}\n${this.#daemon?.logTail() ?? ''}`);
  }
}
