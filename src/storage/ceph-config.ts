import { createHash } from 'node:crypto';
import { mkdir, readFile, rename, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { RbdSource } from '../domain/image.ts';
import { CdpError, errorText } from '../errors.ts';

/** Where librbd looks if nothing is said. */
const defaultConfig = '/etc/ceph/ceph.conf';

/** Ceph's options by which a cluster that is gone becomes an I/O error; by default its clients wait, 5 minutes or for ever. */
const timeouts = ['rados_osd_op_timeout', 'rados_mon_op_timeout', 'client_mount_timeout'] as const;

/**
 * The client's configuration of an image, with time-outs where it has none, as a file in `folder` that any process can read: it
 * holds what the administrator's own file holds, and no key. Files are named by their content, and never change.
 * @throws CdpError `ceph-config-unreadable` for a file that the image's `<config>` names.
 */
export async function writeCephConfig(
  folder: string,
  { config }: Pick<RbdSource, 'config'>,
  timeoutMs: number,
): Promise<string> {
  const text = withTimeouts(await readConfig(config), timeoutMs);
  const path = join(folder, `ceph-${createHash('sha256').update(text).digest('hex').slice(0, 16)}.conf`);
  await mkdir(folder, { recursive: true, mode: 0o755 });
  const draft = `${path}.${process.pid}`;
  await writeFile(draft, text, { mode: 0o644 });
  await rename(draft, path);
  return path;
}

/** Whether a client that goes by the image's own configuration fails in the end when the cluster is gone. */
export async function hasCephTimeout({ config }: Pick<RbdSource, 'config'>): Promise<boolean> {
  return names(await readConfig(config), 'rados_osd_op_timeout');
}

function withTimeouts(text: string, timeoutMs: number): string {
  const seconds = Math.max(1, Math.round(timeoutMs / 1000));
  const missing = timeouts.filter((option) => !names(text, option));
  return `${text}\n[client]\n${missing.map((option) => `${option} = ${seconds}\n`).join('')}`;
}

/** Ceph takes spaces, dashes and underscores in an option's name for the same. */
function names(text: string, option: string): boolean {
  return new RegExp(`^\\s*${option.replaceAll('_', '[ _-]')}\\s*=`, 'm').test(text);
}

async function readConfig(config: string | null): Promise<string> {
  try {
    return await readFile(config ?? defaultConfig, 'utf8');
  } catch (cause) {
    if (config === null) return '';
    throw new CdpError({
      code: 'ceph-config-unreadable',
      message: `Ceph's configuration could not be read: ${errorText(cause)}`,
      hint: "see the <config file='...'> of the disk",
      cause,
    });
  }
}
