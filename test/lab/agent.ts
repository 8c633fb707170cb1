import { mkdirSync, writeFileSync } from 'node:fs';
import { request } from 'node:http';
import { join } from 'node:path';
import { stringify, type TomlTable } from 'smol-toml';
import type { DomainStatus } from '../../src/protection/model.ts';
import { killRelays, relaysFolder } from '../../src/protection/relays/relay-folder.ts';
import type { Libvirtd } from './libvirtd.ts';
import { Daemon, type Finished, run, tail } from './run.ts';
import { waitFor } from './wait.ts';

const dist = join(import.meta.dirname, '../../dist');

/** With `mirror` any file of tests is tried with the second engine. */
const engine = process.env['VIRT_CDP_TEST_ENGINE'];

export interface AgentOptions {
  /** Keys of virt-cdp.toml, over the laboratory's own; a table replaces single keys of the laboratory's table. */
  config?: TomlTable;
  /** Default: a folder in the scratch root, the same for each agent of a laboratory. */
  storeDir?: string;
  /** Over the environment of this process. */
  env?: Record<string, string>;
}

/**
 * The product's agent as a process of its own, in libvirtd's mount namespace: to it and to the command line, this is the
 * host's only libvirtd. The programs are those of dist/.
 */
export class Agent {
  readonly socket: string;
  readonly storeDir: string;
  readonly configPath: string;
  readonly logPath: string;
  readonly #libvirtd: Libvirtd;
  readonly #env: NodeJS.ProcessEnv;
  #daemon: Daemon | undefined;

  constructor(libvirtd: Libvirtd, options: AgentOptions) {
    const folder = join(libvirtd.root, 'agent');
    this.#libvirtd = libvirtd;
    this.socket = join(folder, 'virt-cdp.sock');
    this.storeDir = options.storeDir ?? join(folder, 'store');
    this.configPath = join(folder, 'virt-cdp.toml');
    this.logPath = join(folder, 'virt-cdpd.log');
    this.#env = { ...process.env, ...options.env };
    for (const each of [folder, this.storeDir]) mkdirSync(each, { recursive: true });
    const config: TomlTable = {
      store: this.storeDir,
      socket: this.socket,
      libvirt: { socket: libvirtd.socket },
      log: { level: 'debug' },
      ...(engine === undefined ? {} : { engine }),
    };
    writeFileSync(this.configPath, stringify(merge(config, options.config ?? {})));
  }

  get pid(): number {
    if (this.#daemon === undefined) throw new Error('the agent is not running');
    return this.#daemon.pid;
  }

  /** Starts the agent, and returns when its socket answers. */
  async start(): Promise<void> {
    const [program, ...args] = this.#inside('virt-cdpd.js', '--config', this.configPath);
    const daemon = new Daemon(program, args, { logPath: this.logPath, env: this.#env });
    this.#daemon = daemon;
    await waitFor(
      `the agent's socket to answer`,
      async () => {
        if (!daemon.running) throw new Error(`the agent ended\n${daemon.logTail()}`);
        return answers(this.socket);
      },
      15_000,
      () => daemon.logTail(),
    );
  }

  /** Ends the agent alone. */
  async kill(signal: 'SIGKILL' | 'SIGTERM'): Promise<void> {
    await this.#daemon?.end(signal);
    this.#daemon = undefined;
  }

  /** Ends the agent, and its relays: one that hangs would outlive everybody. */
  async close(): Promise<void> {
    await this.kill('SIGKILL');
    killRelays(relaysFolder(this.socket));
  }

  async restart(signal: 'SIGKILL' | 'SIGTERM' = 'SIGTERM'): Promise<void> {
    await this.kill(signal);
    await this.start();
  }

  /** The command line: `cdp('protect', 'web1', '--disk', 'vda', ...)`, whatever its exit code. */
  async cdp(...args: string[]): Promise<Finished> {
    const [program, ...rest] = this.#inside('virt-cdp.js', '--socket', this.socket, ...args);
    return run(program, rest, { timeoutMs: 120_000, env: this.#env });
  }

  /** The command line, which must succeed; its stdout. */
  async mustCdp(...args: string[]): Promise<string> {
    const { code, stdout, stderr } = await this.cdp(...args);
    if (code !== 0)
      throw new Error(`virt-cdp ${args.join(' ')}: exit ${code}\n${stderr}${stdout}\n${tail(this.logPath)}`);
    return stdout;
  }

  /** Makes the laboratory's libvirtd call this agent's hook. @returns what the command said */
  async installHook(): Promise<string> {
    return this.mustCdp('install-hook', '--dir', this.#libvirtd.hooksDir, '--config', this.configPath);
  }

  async status(domain: string): Promise<DomainStatus> {
    const [status] = JSON.parse(await this.mustCdp('status', domain, '--json')) as DomainStatus[];
    if (status === undefined) throw new Error(`virt-cdp status ${domain} --json: an empty array`);
    return status;
  }

  /** Waits for a state of the domain, such as `protected`, and returns the whole status. */
  async waitState(domain: string, state: DomainStatus['state'], timeoutMs: number): Promise<DomainStatus> {
    let last: DomainStatus | undefined;
    return waitFor(
      `domain ${domain} to be ${state}`,
      async () => {
        last = await this.status(domain);
        return last.state === state ? last : undefined;
      },
      timeoutMs,
      () => `${JSON.stringify(last, null, 2)}\n${tail(this.logPath)}`,
    );
  }

  #inside(program: string, ...args: string[]): [string, ...string[]] {
    return this.#libvirtd.namespace.command(process.execPath, join(dist, program), ...args);
  }
}

function merge(base: TomlTable, over: TomlTable): TomlTable {
  const merged = { ...base };
  for (const [key, value] of Object.entries(over)) {
    const old = merged[key];
    merged[key] = isTable(old) && isTable(value) ? { ...old, ...value } : value;
  }
  return merged;
}

function isTable(value: unknown): value is TomlTable {
  return typeof value === 'object' && value !== null && !Array.isArray(value) && !(value instanceof Date);
}

async function answers(socketPath: string): Promise<boolean> {
  return new Promise((resolve) => {
    const call = request({ socketPath, path: '/v1/domains', timeout: 5000 }, (response) => {
      response.resume();
      resolve(true);
    });
    call.once('timeout', () => call.destroy());
    call.once('error', () => resolve(false));
    call.end();
  });
}
