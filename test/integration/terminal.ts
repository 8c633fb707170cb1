import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, mkdirSync, writeFileSync } from 'node:fs';
import { delimiter, join } from 'node:path';
import { notSaid, type ConsoleBlock } from '../docs/console.ts';
import { run } from '../lab/run.ts';
import { within } from '../lab/wait.ts';
import { patienceMs, type Scene } from './scene.ts';

const checkout = join(import.meta.dirname, '../..');

export interface TerminalOptions {
  /** Where lines are typed; default: the scratch root. */
  folder?: string;
  env?: Record<string, string>;
  /** What a page calls otherwise than it is called here. */
  instead?: Record<string, string>;
  /** After each line: what whoever types waits for before the next one. */
  typed?: (line: string) => Promise<unknown>;
}

/** Root's terminal on the laboratory's host, into which the lines of a page are typed. */
export class Terminal {
  readonly #scene: Scene;
  readonly #options: TerminalOptions;

  constructor(scene: Scene, options: TerminalOptions = {}) {
    this.#scene = scene;
    this.#options = options;
  }

  /** What a line says; it must succeed. One that follows events is ended by Ctrl-C once it has said something. */
  async type(line: string): Promise<string> {
    const { instead = {} } = this.#options;
    const typed = Object.entries(instead).reduce((text, [there, here]) => text.replaceAll(there, here), line);
    if (line.includes('--follow')) return this.#follow(typed);
    const [program, ...args] = this.#command(typed);
    const { code, stdout, stderr } = await run(program, args, { env: this.#env(), timeoutMs: 120_000 });
    assert.equal(code, 0, `${typed}: exit ${code}\n${stderr}${stdout}`);
    return stdout + stderr;
  }

  /** Types a block's lines; each must say what the page shows. */
  async typeAll({ commands }: ConsoleBlock): Promise<void> {
    for (const { command, output } of commands) {
      const said = await this.type(command);
      const missing = notSaid(output, said);
      assert.equal(missing, null, `${command} does not say '${missing}', but:\n${said}`);
      await this.#options.typed?.(command);
    }
  }

  async #follow(line: string): Promise<string> {
    const [program, ...args] = this.#command(`exec ${line}`);
    const child = spawn(program, args, { env: this.#env(), stdio: ['ignore', 'pipe', 'inherit'] });
    const ended = once(child, 'exit');
    try {
      const [said] = (await within(`${line} to say something`, once(child.stdout, 'data'), patienceMs)) as [Buffer];
      return said.toString();
    } finally {
      child.kill('SIGINT');
      await ended;
    }
  }

  #command(line: string): [string, ...string[]] {
    const { libvirtd, root } = this.#scene.lab;
    return libvirtd.namespace.command('sh', '-c', `cd "$0" && ${line}`, this.#options.folder ?? root);
  }

  #env(): NodeJS.ProcessEnv {
    return {
      ...process.env,
      ...this.#options.env,
      PATH: [this.#bin(), process.env['PATH']].join(delimiter),
      LIBVIRT_DEFAULT_URI: 'qemu:///system',
    };
  }

  /** `virt-cdp`, as a package has it. */
  #bin(): string {
    const { lab, agent } = this.#scene;
    const bin = join(lab.root, 'bin');
    mkdirSync(bin, { recursive: true });
    const program = join(bin, 'virt-cdp');
    const script = `#!/bin/sh\nexec '${process.execPath}' '${join(checkout, 'dist/virt-cdp.js')}' --socket '${agent.socket}' "$@"\n`;
    writeFileSync(program, script);
    chmodSync(program, 0o755);
    return bin;
  }
}
