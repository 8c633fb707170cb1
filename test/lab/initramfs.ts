import { createHash } from 'node:crypto';
import { existsSync, readdirSync } from 'node:fs';
import { copyFile, mkdir, mkdtemp, readFile, rename, rm, stat, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { must } from './run.ts';

/** What a guest boots from. */
export interface GuestKernel {
  kernel: string;
  initrd: string;
}

const witnessSource = join(import.meta.dirname, 'witness.c');

/** The guest's devices, in the order of loading; modprobe adds what they depend on, and knows which are built in. */
const modules = ['virtio_pci', 'virtio_blk', 'virtio_scsi', 'sd_mod', 'evdev', 'button'];

const init = `#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
for module in $(/bin/busybox cat /modules/order); do /bin/busybox insmod /modules/$module; done
exec /witness >/dev/console 2>&1 </dev/null
`;

/**
 * The newest kernel in /boot that is made for guests, and an initramfs with busybox, its modules and the witness. Built
 * once: kept under the temporary directory, by kernel version and by the text of everything that goes into it.
 */
export async function guestKernel(): Promise<GuestKernel> {
  const version = newestKernel();
  const ingredients = createHash('sha256');
  for (const part of [await readFile(witnessSource), init, modules.join()]) ingredients.update(part);
  const folder = join(tmpdir(), `virt-cdp-guest-${version}-${ingredients.digest('hex').slice(0, 12)}`);
  const built = { kernel: `/boot/vmlinuz-${version}`, initrd: join(folder, 'initramfs.cpio') };

  if (!existsSync(built.initrd)) {
    const scratch = await mkdtemp(join(tmpdir(), 'virt-cdp-guest-build-'));
    try {
      await build(version, scratch);
      await mkdir(folder, { recursive: true, mode: 0o755 });
      await rename(join(scratch, 'initramfs.cpio'), built.initrd);
    } finally {
      await rm(scratch, { recursive: true, force: true });
    }
  }
  if ((await stat(built.initrd)).uid !== process.getuid?.())
    throw new Error(`${built.initrd} belongs to somebody else`);
  return built;
}

function newestKernel(): string {
  const versions = readdirSync('/boot')
    .filter((name) => name.startsWith('vmlinuz-'))
    .map((name) => name.slice('vmlinuz-'.length))
    .filter((version) => existsSync(`/lib/modules/${version}/modules.dep`))
    .sort((a, b) => a.localeCompare(b, 'en', { numeric: true }));
  const newest = versions.filter((version) => version.endsWith('-cloud-amd64')).at(-1) ?? versions.at(-1);
  if (newest === undefined) throw new Error('no kernel with modules in /boot: run test/lab/install.sh');
  return newest;
}

async function build(kernelVersion: string, scratch: string): Promise<void> {
  const root = join(scratch, 'root');
  for (const folder of ['bin', 'proc', 'sys', 'dev', 'modules']) await mkdir(join(root, folder), { recursive: true });
  await copyFile(busybox(), join(root, 'bin/busybox'));
  await symlink('busybox', join(root, 'bin/sh'));
  await must('gcc', '-static', '-O2', '-s', '-pthread', '-o', join(root, 'witness'), witnessSource);
  await writeFile(join(root, 'init'), init, { mode: 0o755 });

  const order: string[] = [];
  for (const file of await moduleFiles(kernelVersion)) order.push(await unpackModule(file, join(root, 'modules')));
  await writeFile(join(root, 'modules/order'), order.join('\n'));
  await must('sh', '-c', 'cd "$1" && find . | cpio --quiet -o -H newc >../initramfs.cpio', 'sh', root);
}

function busybox(): string {
  const found = ['/bin/busybox', '/usr/bin/busybox'].find((path) => existsSync(path));
  if (found === undefined) throw new Error('no busybox: run test/lab/install.sh');
  return found;
}

/** The .ko files of `modules` and what they need, in the order of loading. */
async function moduleFiles(kernelVersion: string): Promise<string[]> {
  const listing = await must('modprobe', '--set-version', kernelVersion, '--show-depends', '--all', ...modules);
  return [...new Set([...listing.matchAll(/^insmod (\S+)/gm)].map((match) => match[1]!))];
}

/** Copies a module into a folder, decompressed, and returns its file name there. */
async function unpackModule(file: string, folder: string): Promise<string> {
  const name = basename(file).replace(/\.(xz|gz|zst)$/, '');
  const unpacker = { '.xz': 'xz', '.gz': 'gzip', '.zst': 'zstd' }[/\.(?:xz|gz|zst)$/.exec(file)?.[0] ?? ''];
  if (unpacker === undefined) await copyFile(file, join(folder, name));
  else await must('sh', '-c', `${unpacker} -dc "$1" >"$2"`, 'sh', file, join(folder, name));
  return name;
}
