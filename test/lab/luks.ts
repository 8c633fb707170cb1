import { rmSync } from 'node:fs';
import { must, run } from './run.ts';

/** The key is derived in no time; qemu-img's default takes 2 s at each opening. To find out how takes some seconds, on a busy machine 20. */
const deriveMs = 10;

/**
 * Makes an empty LUKS image, a volume or inside qcow2, with the passphrase of a file. To choose a key derivation that takes so long,
 * QEMU 7.2 counts a thread's time in steps that a busy machine makes too coarse, and fails (crypto/pbkdf.c).
 */
export async function createLuks(path: string, format: 'raw' | 'qcow2', sizeBytes: number, key: string): Promise<void> {
  const [driver, prefix] = format === 'raw' ? ['luks', ''] : ['qcow2', 'encrypt.'];
  const options = `${format === 'raw' ? '' : 'encrypt.format=luks,'}${prefix}key-secret=s,${prefix}iter-time=${deriveMs}`;
  const args = ['create', '-q', '-f', driver, ...secretArgs(key), '-o', options, path, String(sizeBytes)];
  for (let tries = 1; ; tries++) {
    const { code, stderr } = await run('qemu-img', args, { timeoutMs: 40_000 });
    if (code === 0) return;
    if (!stderr.includes('accurate CPU usage') || tries === 30) throw new Error(`qemu-img create: ${stderr}`);
  }
}

/** What is in a LUKS image, in a raw file of its own, also while a QEMU has it open. */
export async function inClear(path: string, format: 'raw' | 'qcow2', key: string): Promise<string> {
  const clear = `${path}.clear`;
  rmSync(clear, { force: true });
  const driver = format === 'raw' ? 'driver=luks,key-secret=s' : 'driver=qcow2,encrypt.key-secret=s';
  const image = `${driver},file.filename=${path}`;
  await must('qemu-img', 'convert', '-U', ...secretArgs(key), '--image-opts', image, '-O', 'raw', clear);
  return clear;
}

function secretArgs(key: string): string[] {
  return ['--object', `secret,id=s,file=${key}`];
}
