import { access, chmod, mkdir, open, readFile, readdir, realpath, rename, stat, unlink } from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';
import { CdpError } from '../errors.ts';
import type { Config } from './config.ts';
import { loadConfig } from './config.ts';

/** In name order among others' hooks, as libvirt runs them. */
const hookName = '50-virt-cdp';

/** Where the hook's text and program are, from the folder of the running program: a checkout's dist/ or src/cli/. */
const textPlaces = ['../hooks/qemu', '../../hooks/qemu', 'hooks/qemu'];
const programPlaces = ['virt-cdp-hook.js', '../../dist/virt-cdp-hook.js'];

export interface InstalledHook {
  path: string;
  /** libvirt had no qemu hook before, and does not look for new ones until it is told. */
  first: boolean;
}

/**
 * Writes <dir>/qemu.d/50-virt-cdp, pointing at this installation and at the given configuration's socket and store.
 * @throws CdpError `no-libvirt`, `not-built` or `cannot-install-hook`, and what loadConfig() throws.
 */
export async function installHookFile(
  dir: string,
  configPath?: string,
  programPath: string = process.argv[1] ?? '',
): Promise<InstalledHook> {
  const home = dirname(await realpath(programPath));
  const textPath = await firstOf(home, textPlaces);
  const hookProgram = await firstOf(home, programPlaces);
  const config = await loadConfig(configPath);
  const hooksDir = resolve(dir);
  if (!(await exists(dirname(hooksDir)))) {
    const message = `cannot install the hook in ${hooksDir}: there is no ${dirname(hooksDir)}`;
    throw new CdpError({ code: 'no-libvirt', message, hint: 'install libvirt, or name its hooks with --dir' });
  }
  const path = hookPath(hooksDir);
  const text = renderHook(await readFile(textPath, 'utf8'), process.execPath, hookProgram, config);
  try {
    const first = !(await hasHook(hooksDir));
    await mkdir(dirname(path), { recursive: true, mode: 0o755 });
    await replaceFile(path, text);
    return { path, first };
  } catch (cause) {
    const message = `cannot install the hook as ${path}: ${(cause as Error).message}`;
    throw new CdpError({ code: 'cannot-install-hook', message, hint: 'run this as root', cause });
  }
}

/** Where libvirt looks for it, in its folder for hooks. */
export function hookPath(hooksDir: string): string {
  return join(resolve(hooksDir), 'qemu.d', hookName);
}

const variableNames = ['node', 'program', 'socket', 'store', 'deadline_ms'] as const;

/** The variables at the top of hooks/qemu. */
export type HookVariables = Record<(typeof variableNames)[number], string>;

/** What an installed hook is set to; null if it is not one of ours. */
export function installedVariables(text: string): HookVariables | null {
  const values = variableNames.map((name) => [name, new RegExp(`^${name}='(.*)'$`, 'm').exec(text)?.[1]] as const);
  if (values.some(([, value]) => value === undefined)) return null;
  return Object.fromEntries(values.map(([name, value]) => [name, value?.replaceAll("'\\''", "'")])) as HookVariables;
}

/** Fills in the variables at the top of hooks/qemu. */
export function renderHook(
  text: string,
  node: string,
  program: string,
  { socket, store, hook }: Pick<Config, 'socket' | 'store' | 'hook'>,
): string {
  const variables: HookVariables = { node, program, socket, store, deadline_ms: String(hook.deadlineMs) };
  return Object.entries(variables).reduce((rendered, [name, value]) => {
    const line = new RegExp(`^${name}='.*'$`, 'm');
    if (!line.test(rendered)) throw new Error(`hooks/qemu has no line for ${name}`);
    return rendered.replace(line, () => `${name}=${quote(value)}`);
  }, text);
}

/** For sh: nothing within single quotes means anything but the quote itself. */
function quote(value: string): string {
  return `'${value.replaceAll("'", "'\\''")}'`;
}

async function firstOf(home: string, places: readonly string[]): Promise<string> {
  for (const place of places) {
    const path = resolve(home, place);
    if (await exists(path)) return path;
  }
  throw new CdpError({
    code: 'not-built',
    message: `cannot install the hook: ${resolve(home, places[0] ?? '')} is not there`,
    hint: 'in a checkout, build the programs first: npm run build',
  });
}

/** Only executable files count for libvirt. */
async function hasHook(hooksDir: string): Promise<boolean> {
  const inFolder = await readdir(join(hooksDir, 'qemu.d')).catch(() => []);
  const candidates = [join(hooksDir, 'qemu'), ...inFolder.map((name) => join(hooksDir, 'qemu.d', name))];
  for (const path of candidates) {
    const found = await stat(path).catch(() => null);
    if (found?.isFile() && (found.mode & 0o111) !== 0) return true;
  }
  return false;
}

/** libvirt may run the hook at any moment: it sees the old file or the whole new one. */
async function replaceFile(path: string, text: string): Promise<void> {
  // Not executable until it has its name: libvirt runs every executable file of the folder.
  const draft = join(dirname(path), `.${hookName}.${process.pid}`);
  try {
    const file = await open(draft, 'w', 0o644);
    try {
      await file.writeFile(text);
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(draft, path);
    await chmod(path, 0o755);
  } catch (error) {
    await unlink(draft).catch(() => undefined);
    throw error;
  }
}

async function exists(path: string): Promise<boolean> {
  return access(path).then(
    () => true,
    () => false,
  );
}
