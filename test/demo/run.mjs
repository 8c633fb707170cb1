// npm run demo: builds the programs, then tells the story in demo.ts. Plain JavaScript, so that it can say what is missing.
import { existsSync } from 'node:fs';
import { join } from 'node:path';

const json = process.argv.includes('--json');
const root = join(import.meta.dirname, '../..');

function problem() {
  if (process.platform !== 'linux') return `the demo needs Linux, with QEMU and libvirt; this is ${process.platform}`;
  if (process.getuid() !== 0)
    return 'the demo needs root: it starts a libvirtd of its own, in a mount namespace. Try: sudo npm run demo';
  if (!existsSync(join(root, 'node_modules/tsx'))) return 'the node modules are missing: run npm ci, or npm run demo';
  return null;
}

function fail(reason) {
  process.stderr.write(`demo: ${reason}\n`);
  if (json) process.stdout.write(`${JSON.stringify({ ok: false, reason })}\n`);
  process.exitCode = 1;
}

async function run() {
  const reason = problem();
  if (reason !== null) return fail(reason);
  process.chdir(root);
  await import('../../esbuild.config.mjs');
  const { register } = await import('tsx/esm/api');
  register();
  const { main } = await import('./demo.ts');
  // An interrupted story leaves timers behind that nobody waits for.
  process.exit(await main(process.argv.slice(2)));
}

run().catch((error) => fail(error instanceof Error ? error.message : String(error)));
