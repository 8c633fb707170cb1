import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import type { ProtectionEvent } from '../../src/protection/model.ts';
import type { Agent } from '../lab/agent.ts';
import type { Lab } from '../lab/lab.ts';
import { within } from '../lab/wait.ts';
import type { Screen } from './screen.ts';

const program = join(import.meta.dirname, '../../dist/virt-cdp.js');
const progressLine = /^\S+ {2}(full-sync|delta-sync|rebuild) {2}\[/;

/** Somebody who types commands on the host of the laboratory, and follows what the agent reports. */
export class Terminal {
  readonly #lab: Lab;
  readonly #agent: Agent;
  readonly #screen: Screen;
  readonly #events: ProtectionEvent[] = [];
  readonly #waiting = new Set<() => void>();
  #progress: string | null = null;

  constructor(lab: Lab, agent: Agent, screen: Screen) {
    this.#lab = lab;
    this.#agent = agent;
    this.#screen = screen;
  }

  /** The progress bar of the command that runs, on a terminal. */
  get progress(): string[] {
    return this.#progress === null ? [] : [this.#progress];
  }

  /** Types a command of virt-cdp, and shows what it says while it says it. @throws unless it exits with 0 */
  async type(...args: string[]): Promise<void> {
    this.#screen.tell(this.#screen.style('cyan', `# virt-cdp ${args.join(' ')}`));
    const child = this.#spawn(args);
    const shown = Promise.all([child.stdout, child.stderr].map((stream) => this.#show(stream)));
    const [code] = (await once(child, 'exit')) as [number | null];
    await shown;
    this.#endProgress();
    if (code !== 0) throw new Error(`virt-cdp ${args.join(' ')}: exit ${code ?? 'by a signal'}`);
  }

  /** Types a command of virsh, and shows what it says. */
  async virsh(...args: string[]): Promise<void> {
    this.#screen.tell(this.#screen.style('cyan', `# virsh ${args.join(' ')}`));
    for (const line of (await this.#lab.virsh(...args)).split('\n')) this.#screen.detail(line.trim());
  }

  /** How long each pause of the guest took, in order. */
  get pausesMs(): number[] {
    return this.#events.flatMap(({ detail }) => (typeof detail['pausedMs'] === 'number' ? [detail['pausedMs']] : []));
  }

  /** Puts each event of the agent on the timeline, as `virt-cdp events --follow` tells it. */
  followEvents(): void {
    const child = this.#spawn(['events', '--follow', '--json']);
    createInterface({ input: child.stdout! }).on('line', (line) => {
      const event = JSON.parse(line) as ProtectionEvent | { error: unknown };
      // The agent is gone: the commands that need it say so.
      if ('error' in event) return;
      this.#endProgress();
      this.#events.push(event);
      this.#screen.tell(this.#screen.style('magenta', `• ${eventText(event)}`), Date.parse(event.time));
      for (const look of [...this.#waiting]) look();
    });
    child.stderr!.resume();
    child.unref();
  }

  /** The first event of that name after the event `after`, if one is given. */
  async event(name: ProtectionEvent['event'], after?: ProtectionEvent): Promise<ProtectionEvent> {
    let look = (): void => undefined;
    const found = new Promise<ProtectionEvent>((resolve) => {
      look = () => {
        const event = this.#events.find((one) => one.event === name && one.seq > (after?.seq ?? 0));
        if (event !== undefined) resolve(event);
      };
    });
    this.#waiting.add(look);
    look();
    try {
      return await within(`the event ${name}`, found, 60_000, () => JSON.stringify(this.#events.at(-1)));
    } finally {
      this.#waiting.delete(look);
    }
  }

  #spawn(args: string[]): ChildProcess {
    const [command, ...rest] = this.#lab.libvirtd.namespace.command(process.execPath, program, ...args);
    const env = { ...process.env, VIRT_CDP_SOCKET: this.#agent.socket };
    return spawn(command, rest, { stdio: ['ignore', 'pipe', 'pipe'], env });
  }

  async #show(stream: NodeJS.ReadableStream | null): Promise<void> {
    if (stream === null) return;
    for await (const line of createInterface({ input: stream })) {
      if (this.#screen.tty && progressLine.test(line)) {
        this.#progress = line;
        continue;
      }
      this.#endProgress();
      this.#screen.detail(this.#coloured(line));
    }
  }

  #endProgress(): void {
    if (this.#progress !== null) this.#screen.detail(this.#progress);
    this.#progress = null;
  }

  #coloured(line: string): string {
    return line
      .replace(/\b(protected|current|reachable)\b/g, (word) => this.#screen.style('green', word))
      .replace(/\b(syncing|rebuilding|failed-over)\b/g, (word) => this.#screen.style('yellow', word))
      .replace(/\b(exposed|broken|UNREACHABLE|STALE)\b/g, (word) => this.#screen.style('red', word));
  }
}

/** `failed-over vda  protected -> failed-over  pausedMs=112` */
function eventText({ event, disk, from, to, detail }: ProtectionEvent): string {
  const change = from === null || to === null ? [] : [`${from} -> ${to}`];
  const details = Object.entries(detail).map(
    ([key, value]) => `${key}=${typeof value === 'string' ? value : JSON.stringify(value)}`,
  );
  return [[event, disk].filter(Boolean).join(' '), ...change, details.join(' ')].filter(Boolean).join('  ');
}
