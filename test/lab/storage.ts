import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import type { NbdAddress } from './domain-xml.ts';
import { freePort, isListening } from './listening.ts';
import type { MountNamespace } from './mount-namespace.ts';
import { Daemon, must } from './run.ts';
import { waitFor } from './wait.ts';

/** Makes an empty image. `sizeBytes` is a multiple of 512. */
export async function createImage(path: string, format: 'raw' | 'qcow2', sizeBytes: number): Promise<string> {
  await must('qemu-img', 'create', '-q', '-f', format, path, String(sizeBytes));
  return path;
}

export interface NbdOptions {
  /** The file that is served, as raw bytes: a client that wants qcow2 says so itself. */
  file: string;
  /** Served instead: each file in it is an export of its name. */
  folder?: string;
  exportName: string;
  /** A folder for the log and the files that trigger errors. */
  scratch: string;
  /** A unix socket's path, or a TCP port on 127.0.0.1 (0: any free one). */
  listen: { socket: string } | { port: number };
  /** Where it runs: with a namespace it ends even if its parent is killed while it hangs. */
  namespace?: MountNamespace;
  /** How writes fail that are made to; default EIO. */
  writeError?: 'EIO' | 'ENOSPC';
  /** Every write takes this much longer. */
  writeDelayMs?: number;
  /** Speaks TLS alone, and to clients with a certificate, by those of this folder. Wants a TCP port. */
  certificates?: string;
  /** Every read takes this much longer. */
  readDelayMs?: number;
  /** Every request is written down there, as nbdkit-log-filter(1) does. */
  logFile?: string;
  /** Writes reach the file only by a flush, or with FUA: a server that is killed loses the others, though they were acknowledged. */
  volatileCache?: boolean;
  /** Does not tell where the image has holes. */
  noExtents?: boolean;
}

/** An NBD server that can be broken on command: a file that fails, hangs, loses its connection or comes back. */
export class NbdServer {
  readonly file: string;
  readonly address: NbdAddress;
  readonly #options: NbdOptions;
  readonly #failReads: string;
  readonly #failWrites: string;
  #daemon: Daemon | undefined;

  private constructor(options: NbdOptions, address: NbdAddress) {
    this.file = options.file;
    this.address = address;
    this.#options = options;
    this.#failReads = join(options.scratch, `${options.exportName}.fail-reads`);
    this.#failWrites = join(options.scratch, `${options.exportName}.fail-writes`);
  }

  static async start(options: NbdOptions): Promise<NbdServer> {
    const { exportName: name, listen } = options;
    const address =
      'socket' in listen
        ? { export: name, socket: listen.socket }
        : { export: name, host: '127.0.0.1', port: listen.port || (await freePort()) };
    const server = new NbdServer(options, address);
    await server.#run();
    return server;
  }

  /** As QEMU and virt-cdp take it: `nbd+unix:///name?socket=/path` or `nbd://127.0.0.1:port/name`. */
  get uri(): string {
    const { address } = this;
    if ('socket' in address) return `nbd+unix:///${address.export}?socket=${address.socket}`;
    const scheme = this.#options.certificates === undefined ? 'nbd' : 'nbds';
    return `${scheme}://${address.host}:${address.port}/${address.export}`;
  }

  get running(): boolean {
    return this.#daemon?.running === true;
  }

  get pid(): number {
    if (this.#daemon === undefined) throw new Error('the NBD server is not running');
    return this.#daemon.pid;
  }

  async #run(): Promise<void> {
    const { address } = this;
    const listen = 'socket' in address ? ['-U', address.socket] : ['-i', address.host, '-p', String(address.port)];
    if ('socket' in address) rmSync(address.socket, { force: true });
    const { certificates } = this.#options;
    const tls =
      certificates === undefined ? [] : ['--tls=require', `--tls-certificates=${certificates}`, '--tls-verify-peer'];
    const command = ['nbdkit', '-f', ...listen, ...tls, '-e', address.export, ...this.#behaviour()] as const;
    const [program, ...args] = this.#options.namespace?.command(...command) ?? command;
    const daemon = new Daemon(program, args, {
      logPath: join(this.#options.scratch, `${address.export}.nbdkit.log`),
    });
    this.#daemon = daemon;
    await waitFor(
      `the NBD server of ${this.file}`,
      async () => {
        if (!daemon.running) throw new Error(`nbdkit ended\n${daemon.logTail()}`);
        return isListening('socket' in address ? { path: address.socket } : address);
      },
      10_000,
      () => daemon.logTail(),
    );
  }

  #behaviour(): string[] {
    const {
      writeDelayMs,
      readDelayMs,
      volatileCache = false,
      noExtents = volatileCache,
      writeError = 'EIO',
      logFile,
      folder,
    } = this.#options;
    const broken = (operation: string, trigger: string, error = 'EIO'): string[] => [
      `error-${operation}=${error}`,
      `error-${operation}-rate=100%`,
      `error-${operation}-file=${trigger}`,
    ];
    return [
      ...(logFile === undefined ? [] : ['--filter=log']),
      '--filter=error',
      ...(writeDelayMs === undefined && readDelayMs === undefined ? [] : ['--filter=delay']),
      // Of what is only in the cache nbdkit 1.32 says that it is a hole, and whoever copies the image leaves it out.
      ...(noExtents ? ['--filter=noextents'] : []),
      ...(volatileCache ? ['--filter=cache'] : []),
      'file',
      folder === undefined ? this.file : `dir=${folder}`,
      ...(volatileCache ? ['cache=writeback', 'cache-min-block-size=4096'] : []),
      ...['pread', 'extents', 'cache'].flatMap((operation) => broken(operation, this.#failReads)),
      ...['pwrite', 'trim', 'zero'].flatMap((operation) => broken(operation, this.#failWrites, writeError)),
      ...(logFile === undefined ? [] : [`logfile=${logFile}`]),
      ...(writeDelayMs === undefined ? [] : [`wdelay=${writeDelayMs}ms`]),
      ...(readDelayMs === undefined ? [] : [`rdelay=${readDelayMs}ms`]),
    ];
  }

  /** From now on every read and write fails with EIO. A flush does not: nbdkit has no filter for that. */
  failAll(): void {
    this.failReads();
    this.failWrites();
  }

  failReads(): void {
    writeFileSync(this.#failReads, '');
  }

  failWrites(): void {
    writeFileSync(this.#failWrites, '');
  }

  /** Takes all failures back. */
  heal(): void {
    rmSync(this.#failReads, { force: true });
    rmSync(this.#failWrites, { force: true });
  }

  /** From now on no request is answered; connections stay open. */
  hang(): void {
    process.kill(this.pid, 'SIGSTOP');
  }

  unhang(): void {
    process.kill(this.pid, 'SIGCONT');
  }

  /** The connections break off, and new ones are refused. */
  async kill(): Promise<void> {
    await this.#daemon?.end('SIGKILL');
    this.#daemon = undefined;
  }

  /** Comes (back) up at the same address, with the same data. */
  async restart(): Promise<void> {
    await this.kill();
    await this.#run();
  }

  async close(): Promise<void> {
    await this.kill();
    this.heal();
    if ('socket' in this.address) rmSync(this.address.socket, { force: true });
  }
}

/** A block device of this host over a file. It ends with whoever uses it, even if nobody closes it. */
export class LoopDevice {
  readonly path: string;
  readonly #holder: Daemon;

  private constructor(path: string, holder: Daemon) {
    this.path = path;
    this.#holder = holder;
  }

  static async over(file: string, scratch: string): Promise<LoopDevice> {
    const logPath = join(scratch, `${basename(file)}.loop.log`);
    // Detached while it is in use, it goes when the last user does (losetup(8), --detach).
    const hold =
      'path=$(losetup --find --show "$1") && exec 3<"$path" && losetup --detach "$path" && echo "$path" && exec sleep infinity';
    const holder = new Daemon('sh', ['-c', hold, 'sh', file], { logPath });
    const path = await waitFor(
      `a loop device over ${file}`,
      () => {
        if (!holder.running) throw new Error(`no loop device\n${holder.logTail()}`);
        return Promise.resolve(/^\/dev\/loop\d+$/m.exec(readFileSync(logPath, 'utf8'))?.[0]);
      },
      10_000,
      () => holder.logTail(),
    );
    return new LoopDevice(path, holder);
  }

  async close(): Promise<void> {
    await this.#holder.end('SIGKILL');
  }
}
