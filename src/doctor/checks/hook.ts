import { readFile, readdir, readlink, stat } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { hookPath, installedVariables, type HookVariables } from '../../config/hook-file.ts';
import type { Check } from '../check.ts';
import { ok, trouble, type Remark } from '../finding.ts';

interface Daemon {
  pid: number;
  startedAtMs: number;
}

interface Facts {
  path: string;
  /** Null if it is not there. */
  file: { executable: boolean; changedAtMs: number; variables: HookVariables | null } | null;
  /** The programs that it names and that are not there. */
  missing: string[];
  /** Null if the configuration can't be read. */
  wanted: { socket: string; store: string } | null;
  /** The libvirtd, or virtqemud, that runs; null if it was not found. */
  daemon: Daemon | null;
  /** The pid of the libvirtd that last called the hook; null if none ever did. */
  calledBy: number | null;
  /** Another qemu hook is older than the daemon: then it looks into qemu.d on every call. */
  otherHook: boolean;
}

const purpose = 'without the hook a stale copy can be started, and a start is not known to the records';

/** Whether libvirt's hook is in place, speaks of this installation, and is called by the libvirtd that runs. */
export const hookCheck: Check<Facts> = {
  name: 'hook',
  async gather({ hooksDir, config, configProblem }) {
    const path = hookPath(hooksDir);
    const found = await stat(path).catch(() => null);
    const variables = found === null ? null : installedVariables(await readFile(path, 'utf8'));
    const daemon = await findDaemon(basename(config.libvirt.socket).startsWith('virtqemud') ? 'virtqemud' : 'libvirtd');
    const programs = variables === null ? [] : [variables.node, variables.program];
    return {
      path,
      file: found === null ? null : { executable: (found.mode & 0o111) !== 0, changedAtMs: found.ctimeMs, variables },
      missing: (await Promise.all(programs.map(async (program) => ((await exists(program)) ? [] : [program])))).flat(),
      wanted: configProblem === null ? { socket: config.socket, store: config.store } : null,
      daemon,
      calledBy: await lastCaller(config.store),
      otherHook: daemon !== null && (await hasOtherHook(hooksDir, daemon.startedAtMs)),
    };
  },
  examine: ({ path, file, missing, wanted, daemon, calledBy, otherHook }) => {
    if (file === null) return [trouble('error', `there is no ${path}`, purpose, 'virt-cdp install-hook')];
    const remarks: Remark[] = [];
    if (!file.executable) remarks.push(trouble('error', `${path} is not executable`, purpose, `chmod 755 ${path}`));
    if (file.variables === null)
      remarks.push(trouble('error', `${path} is not virt-cdp's hook`, purpose, 'virt-cdp install-hook'));
    else {
      for (const program of missing) {
        const why = 'the hook then judges by the list of stale copies alone';
        remarks.push(trouble('error', `${path} runs ${program}, which is not there`, why, 'virt-cdp install-hook'));
      }
      for (const key of ['socket', 'store'] as const) {
        if (wanted === null || file.variables[key] === wanted[key]) continue;
        const what = `${path} has the ${key} ${file.variables[key]}, the configuration ${wanted[key]}`;
        remarks.push(
          trouble(
            'error',
            what,
            'the hook asks an agent, or records, that are not the ones in use',
            'virt-cdp install-hook',
          ),
        );
      }
    }
    if (remarks.length > 0) return remarks;
    return [noticed(path, file.changedAtMs, { daemon, calledBy, otherHook })];
  },
};

/** A first hook is noticed only when libvirtd starts, or gets a SIGHUP (libvirt, src/util/virhook.c: virHookInitialize). */
function noticed(
  path: string,
  changedAtMs: number,
  { daemon, calledBy, otherHook }: Pick<Facts, 'daemon' | 'calledBy' | 'otherHook'>,
): Remark {
  if (daemon === null) {
    const what = `${path} is in place; no libvirtd was found running`;
    return trouble('unknown', what, purpose, 'systemctl status libvirtd (or virtqemud)');
  }
  if (calledBy === daemon.pid) return ok(`${path} is in place, and the running libvirtd (pid ${daemon.pid}) calls it`);
  if (changedAtMs < daemon.startedAtMs || otherHook)
    return ok(`${path} was in place, or another hook was, when libvirtd (pid ${daemon.pid}) started`);
  const what = `${path} is younger than libvirtd (pid ${daemon.pid}), which has never called it`;
  return trouble('unknown', what, `${purpose}; libvirtd may not know of it`, `kill -HUP ${daemon.pid}`);
}

/** Written by hooks/qemu. */
async function lastCaller(store: string): Promise<number | null> {
  const text = await readFile(join(store, 'hook-called'), 'utf8').catch(() => '');
  return /^\d+\n?$/.test(text) ? Number(text) : null;
}

/** The oldest process of this name that sees the same mounts. */
async function findDaemon(name: string): Promise<Daemon | null> {
  const own = await mountsOf('self');
  const pids = (await readdir('/proc')).filter((entry) => /^\d+$/.test(entry));
  const daemons = await Promise.all(
    pids.map(async (pid) => {
      const comm = await readFile(`/proc/${pid}/comm`, 'utf8').catch(() => '');
      return comm.trim() === name && (await mountsOf(pid)) === own
        ? [{ pid: Number(pid), startedAtMs: await startOf(pid) }]
        : [];
    }),
  );
  return daemons.flat().sort((a, b) => a.startedAtMs - b.startedAtMs)[0] ?? null;
}

function mountsOf(pid: string): Promise<string> {
  return readlink(`/proc/${pid}/ns/mnt`).catch(() => '');
}

/** Field 22 of /proc/PID/stat: hundredths of a second since the host's boot (proc(5)). */
async function startOf(pid: string): Promise<number> {
  const [text, uptime] = await Promise.all([
    readFile(`/proc/${pid}/stat`, 'utf8').catch(() => ''),
    readFile('/proc/uptime', 'utf8'),
  ]);
  const afterName = text.slice(text.lastIndexOf(')') + 2).split(' ');
  return Date.now() - (parseFloat(uptime) - Number(afterName[19] ?? 0) / 100) * 1000;
}

async function hasOtherHook(hooksDir: string, beforeMs: number): Promise<boolean> {
  const own = hookPath(hooksDir);
  const others = await readdir(join(hooksDir, 'qemu.d')).catch(() => []);
  const paths = [join(hooksDir, 'qemu'), ...others.map((name) => join(hooksDir, 'qemu.d', name))];
  const found = await Promise.all(paths.filter((path) => path !== own).map((path) => stat(path).catch(() => null)));
  return found.some((file) => file?.isFile() === true && (file.mode & 0o111) !== 0 && file.ctimeMs < beforeMs);
}

function exists(path: string): Promise<boolean> {
  return stat(path).then(
    () => true,
    () => false,
  );
}
