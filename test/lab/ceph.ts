import { randomUUID } from 'node:crypto';
import { chmodSync, copyFileSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { freePort } from './listening.ts';
import type { MountNamespace } from './mount-namespace.ts';
import { Daemon, run } from './run.ts';

export interface CephOptions {
  /** A folder that does not exist yet; everything of the cluster is in it. */
  folder: string;
  namespace: MountNamespace;
}

const pool = 'vms';

/** Who uses the images, with no more rights than they need. */
const client = 'cdp';

/**
 * A Ceph cluster of one monitor and one OSD on a sparse file, with cephx, on 127.0.0.1: no manager, no systemd, nothing outside
 * its folder.
 */
export class CephCluster {
  readonly folder: string;
  readonly #options: CephOptions;
  readonly #fsid = randomUUID();
  readonly #monPort: number;
  readonly #daemons = new Map<'mon' | 'osd', Daemon>();

  private constructor(options: CephOptions, monPort: number) {
    this.folder = options.folder;
    this.#options = options;
    this.#monPort = monPort;
  }

  static async start(options: CephOptions): Promise<CephCluster> {
    const cluster = new CephCluster(options, await freePort());
    try {
      await cluster.#make();
    } catch (error) {
      await cluster.close();
      throw error;
    }
    return cluster;
  }

  /** An empty image of the cluster's pool. */
  async image(name: string, sizeBytes: number): Promise<void> {
    await this.#ceph('rbd', 'create', `${pool}/${name}`, '--size', `${sizeBytes}B`);
  }

  /** As the oracle reads it, by rights of its own. */
  filename(image: string): string {
    return `rbd:${pool}/${image}:id=admin:conf=${this.#conf}`;
  }

  /** The name of the user whose key is `key`. */
  get client(): string {
    return client;
  }

  /** The user's key, base64. */
  get key(): string {
    return /key = (\S+)/.exec(readFileSync(join(this.folder, 'client.keyring'), 'utf8'))?.[1] ?? '';
  }

  /**
   * A folder like /etc/ceph, for who names no user: Ceph's client is then `admin`, whose keyring any process may read. The settings of
   * another client are beside its own, `others`.
   */
  etc(others: string): string {
    const folder = join(this.folder, 'etc');
    mkdirSync(folder);
    writeFileSync(
      join(folder, 'ceph.conf'),
      `[global]\nmon host = 127.0.0.1:${this.#monPort}\n[client.other]\n${others}`,
    );
    copyFileSync(join(this.folder, 'keyring'), join(folder, 'ceph.client.admin.keyring'));
    chmodSync(join(folder, 'ceph.client.admin.keyring'), 0o644);
    return folder;
  }

  /** libvirt's `<source>`, with the secret of this usage; `config`: a file of settings, such as time-outs. */
  sourceXml(image: string, usage: string, config?: string): string {
    return (
      `<source protocol='rbd' name='${pool}/${image}'><host name='127.0.0.1' port='${this.#monPort}'/>` +
      (config === undefined ? '' : `<config file='${config}'/>`) +
      `<auth username='${client}'><secret type='ceph' usage='${usage}'/></auth></source>`
    );
  }

  /** The cluster's storage is gone; its monitor stays. */
  async killOsd(): Promise<void> {
    await this.#daemons.get('osd')?.end('SIGKILL');
  }

  /** With the same data. */
  async startOsd(): Promise<void> {
    this.#run('osd', 'ceph-osd', '-f', '-i', '0');
    // Ends when the OSD serves: nothing less shows it.
    await this.#ceph('rados', '-p', pool, 'put', 'lab-is-up', '/dev/null');
  }

  async close(): Promise<void> {
    await Promise.all([...this.#daemons.values()].map((daemon) => daemon.end('SIGKILL')));
  }

  get #conf(): string {
    return join(this.folder, 'ceph.conf');
  }

  async #make(): Promise<void> {
    for (const part of ['', 'mon', 'osd', 'run']) mkdirSync(join(this.folder, part));
    const address = `127.0.0.1:${this.#monPort}`;
    const at = (name: string): string => join(this.folder, name);
    writeFileSync(this.#conf, configuration(this.folder, this.#fsid, address));
    const all = ['--cap', 'mon', 'allow *', '--cap', 'osd', 'allow *'];
    await this.#tool(
      'ceph-authtool',
      '--create-keyring',
      at('keyring'),
      '--gen-key',
      '-n',
      'mon.',
      '--cap',
      'mon',
      'allow *',
    );
    await this.#tool('ceph-authtool', at('keyring'), '--gen-key', '-n', 'client.admin', ...all);
    await this.#tool('monmaptool', '--create', '--add', 'a', address, '--fsid', this.#fsid, at('monmap'));
    await this.#ceph('ceph-mon', '--mkfs', '-i', 'a', '--monmap', at('monmap'), '--keyring', at('keyring'));
    this.#run('mon', 'ceph-mon', '-f', '-i', 'a', '--public-addr', address);
    const osdKey = (await this.#tool('ceph-authtool', '--gen-print-key')).trim();
    const osdUuid = randomUUID();
    writeFileSync(at('osd.json'), JSON.stringify({ cephx_secret: osdKey }));
    await this.#ceph('ceph', 'osd', 'new', osdUuid, '-i', at('osd.json'));
    await this.#tool('ceph-authtool', '--create-keyring', at('osd/keyring'), '-n', 'osd.0', '--add-key', osdKey);
    await this.#ceph('ceph-osd', '-i', '0', '--mkfs', '--osd-uuid', osdUuid);
    await this.#ceph('ceph', 'osd', 'pool', 'create', pool, '1', '1');
    const rights = ['mon', 'profile rbd', 'osd', `profile rbd pool=${pool}`];
    await this.#ceph('ceph', 'auth', 'get-or-create', `client.${client}`, ...rights, '-o', at('client.keyring'));
    await this.startOsd();
    await this.#ceph('rbd', 'pool', 'init', pool);
  }

  #run(name: 'mon' | 'osd', program: string, ...args: string[]): void {
    const [command, ...rest] = this.#options.namespace.command(program, '-c', this.#conf, ...args);
    this.#daemons.set(name, new Daemon(command, rest, { logPath: join(this.folder, `${name}.out`) }));
  }

  #ceph(program: string, ...args: string[]): Promise<string> {
    return this.#tool(program, '-c', this.#conf, ...args);
  }

  async #tool(program: string, ...args: string[]): Promise<string> {
    const { code, stdout, stderr } = await run(program, args);
    if (code === 0) return stdout;
    const logs = [...this.#daemons.values()].map((daemon) => daemon.logTail());
    throw new Error(`${program} ${args.join(' ')}: exit ${code}\n${stderr}${stdout}${logs.join('\n')}`);
  }
}

function configuration(folder: string, fsid: string, monitor: string): string {
  return `[global]
fsid = ${fsid}
mon host = ${monitor}
mon initial members = a
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
public network = 127.0.0.0/8
ms bind ipv6 = false
run dir = ${folder}/run
admin socket = ${folder}/run/$name.$pid.asok
log file = ${folder}/run/$name.log
pid file = ${folder}/run/$name.pid
mon data = ${folder}/mon
osd data = ${folder}/osd
osd objectstore = bluestore
bluestore block size = ${2 << 30}
osd pool default size = 1
osd pool default min size = 1
osd crush chooseleaf type = 0
osd client watch timeout = 5
mon allow pool size one = true
mon warn on pool no redundancy = false
[mon]
keyring = ${folder}/mon/keyring
[osd]
keyring = ${folder}/osd/keyring
[client]
keyring = ${folder}/keyring
`;
}
