import { execFile, spawn, type ChildProcess } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import { Monitor, type QmpChannel, type QmpEvent } from '../../src/qmp/monitor.ts';

/** A QEMU that stands still; unless told, without a machine: block nodes and jobs, and nobody who uses them. */
export class RealQemu {
  readonly monitor: Monitor;
  readonly #folder: string;
  readonly #process: ChildProcess;
  readonly #channel: QmpSocket;
  readonly #said: AsyncIterator<string>;

  private constructor(folder: string, qemu: ChildProcess, channel: QmpSocket) {
    this.monitor = new Monitor(channel);
    this.#folder = folder;
    this.#process = qemu;
    this.#channel = channel;
    this.#said = createInterface(qemu.stdout!)[Symbol.asyncIterator]();
  }

  static async start(machine: readonly string[] = ['-machine', 'none']): Promise<RealQemu> {
    const folder = mkdtempSync(join(tmpdir(), 'virt-cdp-qemu-'));
    const path = join(folder, 'qmp');
    const args = `-nodefaults -display none -S -qmp unix:${path},server=on,wait=off`.split(' ');
    const qemu = spawn('stdbuf', ['-oL', 'qemu-system-x86_64', ...machine, ...args], {
      stdio: ['ignore', 'pipe', 'ignore'],
    });
    const channel = new QmpSocket(await connected(path));
    await channel.send(JSON.stringify({ execute: 'qmp_capabilities' }));
    return new RealQemu(folder, qemu, channel);
  }

  /** A request to a node, as qemu-io takes it; the first line of what qemu-io says of it. */
  async request(node: string, request: string): Promise<string> {
    await this.monitor.execute('human-monitor-command', { 'command-line': `qemu-io ${node} "${request}"` });
    return this.said();
  }

  /** The next line that it says. */
  async said(): Promise<string> {
    return String((await this.#said.next()).value);
  }

  end(): void {
    this.#channel.end();
    this.#process.kill('SIGKILL');
    rmSync(this.#folder, { recursive: true });
  }
}

/** Whether this machine has all of these programs. */
export async function areInstalled(...programs: string[]): Promise<boolean> {
  const found = programs.map((program) => promisify(execFile)(program, ['--version']));
  return (await Promise.allSettled(found)).every(({ status }) => status === 'fulfilled');
}

/** To a unix socket whose server may just be starting. */
export async function connected(path: string): Promise<Socket> {
  for (let tries = 0; ; tries++) {
    try {
      return await new Promise<Socket>((resolve, reject) => {
        const socket = connect(path, () => resolve(socket)).once('error', reject);
      });
    } catch (error) {
      if (tries > 100) throw error;
      await sleep(50);
    }
  }
}

/** QEMU's own socket, one command at a time. */
class QmpSocket implements QmpChannel {
  readonly #socket: Socket;
  readonly #listeners = new Set<(event: QmpEvent) => void>();
  #answer: (line: string) => void = () => undefined;

  constructor(socket: Socket) {
    this.#socket = socket;
    createInterface(socket).on('line', (line) => {
      const message = JSON.parse(line) as { event?: string; data?: QmpEvent['data']; QMP?: unknown };
      if (message.event !== undefined) {
        for (const listener of this.#listeners)
          listener({ event: message.event, timeMs: Date.now(), data: message.data ?? {} });
      } else if (message.QMP === undefined) this.#answer(line);
    });
  }

  send(request: string): Promise<string> {
    return new Promise((resolve) => {
      this.#answer = resolve;
      this.#socket.write(request + '\n');
    });
  }

  onEvent(listener: (event: QmpEvent) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  end(): void {
    this.#socket.destroy();
  }
}
