import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { build } from 'esbuild';

const uuid = '11111111-2222-3333-4444-555555555555';
const xml = `<domain type='kvm'><name>web1</name><uuid>${uuid}</uuid></domain>`;

describe("libvirt's hook, without an agent", () => {
  let folder: string;
  let program: string;

  before(async () => {
    folder = await mkdtemp(join(tmpdir(), 'virt-cdp hook '));
    program = join(folder, 'virt-cdp-hook.js');
    await build({ entryPoints: ['src/hook/main.ts'], outfile: program, bundle: true, platform: 'node', format: 'cjs' });
  });
  after(() => rm(folder, { recursive: true }));

  async function hook(operation: string): Promise<void> {
    const env = { VIRT_CDP_SOCKET: join(folder, 'nobody.sock'), VIRT_CDP_STORE: folder };
    const child = spawn(process.execPath, [program, 'web1', operation, 'begin', '-'], { env, stdio: 'pipe' });
    const ended = once(child, 'exit');
    child.stdin.end(xml);
    assert.deepEqual(await ended, [0, null]);
  }

  it("ends the relays of a domain's last run when it starts: what hangs in one must not reach the mirror any more", async () => {
    const relays = [`${uuid}-vda`, 'another-vda'].map((name) => {
      const relay = spawn('sleep', ['600'], { stdio: 'ignore' });
      return { relay, name, ended: once(relay, 'exit') };
    });
    const [own, other] = relays;
    try {
      for (const { relay, name } of relays) {
        const at = join(folder, 'relays', name);
        await mkdir(at, { recursive: true });
        await writeFile(join(at, 'process'), await readFile(`/proc/${relay.pid}/stat`));
      }
      await hook('migrate');
      assert.equal(own?.relay.signalCode, null);
      await hook('prepare');
      await Promise.race([own.ended, sleep(5_000)]);
      assert.deepEqual([own.relay.signalCode, other?.relay.signalCode], ['SIGKILL', null]);
    } finally {
      for (const { relay, ended } of relays) {
        relay.kill('SIGKILL');
        await ended;
      }
    }
  });
});
