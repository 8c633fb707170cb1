import { existsSync, rmSync } from 'node:fs';
import { copyFile, mkdtemp, rename, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { must, run } from './run.ts';

/** Of every LUKS image here. */
export const passphrase = 'sesame-open-43';
export const passphraseBase64 = Buffer.from(passphrase).toString('base64');

const withSecret = ['--object', `secret,id=s,data=${passphrase}`];

/** The key is derived in no time; qemu-img's default takes 2 s at each opening. */
const deriveMs = 10;

type LuksFormat = 'raw' | 'qcow2';

/** Makes an empty LUKS image, a volume or inside qcow2. All of one format have one key. */
export async function createLuks(path: string, format: LuksFormat, sizeBytes: number): Promise<void> {
  await copyFile(await smallest(format), path);
  await must('qemu-img', 'resize', '-q', ...withSecret, '--image-opts', openedBy(path, format), String(sizeBytes));
}

/** What is in a LUKS image, in a raw file of its own, also while a QEMU has it open. */
export async function inClear(path: string, format: LuksFormat): Promise<string> {
  const clear = `${path}.clear`;
  rmSync(clear, { force: true });
  await must('qemu-img', 'convert', '-U', ...withSecret, '--image-opts', openedBy(path, format), '-O', 'raw', clear);
  return clear;
}

function openedBy(path: string, format: LuksFormat): string {
  return `${format === 'raw' ? 'driver=luks,' : 'driver=qcow2,encrypt.'}key-secret=s,file.filename=${path}`;
}

/** Kept from one test to the next, because it takes seconds to find out how a key is derived in so long, on a busy machine 20. */
async function smallest(format: LuksFormat): Promise<string> {
  const kept = join(tmpdir(), `virt-cdp-luks-${format}-${passphrase}`);
  if (existsSync(kept)) return kept;
  const scratch = await mkdtemp(`${kept}-`);
  try {
    const image = join(scratch, 'image');
    await create(image, format);
    await rename(image, kept);
  } finally {
    await rm(scratch, { recursive: true });
  }
  return kept;
}

/** QEMU 7.2 counts a thread's time in steps that a busy machine makes too coarse to find that out, and fails (crypto/pbkdf.c). */
async function create(path: string, format: LuksFormat): Promise<void> {
  const [driver, prefix] = format === 'raw' ? ['luks', ''] : ['qcow2', 'encrypt.'];
  const options = `${format === 'raw' ? '' : 'encrypt.format=luks,'}${prefix}key-secret=s,${prefix}iter-time=${deriveMs}`;
  const args = ['create', '-q', '-f', driver, ...withSecret, '-o', options, path, '1M'];
  for (let tries = 1; ; tries++) {
    const { code, stderr } = await run('qemu-img', args, { timeoutMs: 40_000 });
    if (code === 0) return;
    if (!stderr.includes('accurate CPU usage') || tries === 30) throw new Error(`qemu-img create: ${stderr}`);
  }
}
