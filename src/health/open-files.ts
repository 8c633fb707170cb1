import { dirname } from 'node:path';
import { runTool } from '../storage/run-tool.ts';
import { descriptorsOf } from './descriptors.ts';

/** A file that a process has open and nobody can open again: its path is gone, or leads to another file. */
export interface LostFile {
  path: string;
  is: 'deleted' | 'replaced';
}

/** What `stat --file-system` calls file systems whose files can't vanish with a network; anything else is not judged. */
const localFileSystems = [
  'ext2/ext3',
  'xfs',
  'btrfs',
  'zfs',
  'f2fs',
  'jfs',
  'reiserfs',
  'tmpfs',
  'ramfs',
  'overlayfs',
  'bcachefs',
];

/** Those of these files that lie on a local file system, by what their folders lie on. */
export async function localFiles(paths: string[], deadline: { deadlineMs: number }): Promise<string[]> {
  const folders = [...new Set(paths.map((path) => dirname(path)))];
  if (folders.length === 0) return [];
  const { stdout } = await runTool('stat', ['--file-system', '--format=%n\t%T', '--', ...folders], deadline);
  const local = stdout.split('\n').flatMap((line) => {
    const [folder = '', kind = ''] = line.split('\t');
    return localFileSystems.includes(kind) ? [folder] : [];
  });
  return paths.filter((path) => local.includes(dirname(path)));
}

/**
 * Those of these local files that the process has open no more under their paths, and of the others the sizes in bytes. Files are
 * compared by device and inode, in a process of its own. Null if that can't be told: the process is gone, or storage does not answer
 * in time.
 */
export async function lookAtOpenFiles(
  pid: number,
  paths: string[],
  deadline: { deadlineMs: number },
): Promise<{ lost: LostFile[]; sizes: Map<string, number> } | null> {
  const descriptors = openFiles(pid);
  if (descriptors === null) return null;
  if (paths.length === 0) return { lost: [], sizes: new Map() };
  const [open, there] = await Promise.all([statFiles(descriptors, deadline), statFiles(paths, deadline)]);
  if (open === null || there === null) return null;
  const inodes = new Set([...open.found.values()].map(({ inode }) => inode));
  const isOpen = (path: string): boolean => inodes.has(there.found.get(path)?.inode ?? '');
  const lost = paths.flatMap((path): LostFile[] => {
    if (there.found.has(path)) return isOpen(path) ? [] : [{ path, is: 'replaced' }];
    return there.missing.includes(path) ? [{ path, is: 'deleted' }] : [];
  });
  const sizes = [...there.found].flatMap(([path, { sizeBytes }]): [string, number][] =>
    isOpen(path) ? [[path, sizeBytes]] : [],
  );
  return { lost, sizes: new Map(sizes) };
}

/** The process's descriptors of files, as paths in /proc. */
function openFiles(pid: number): string[] | null {
  return descriptorsOf(pid)?.flatMap(({ path, target }) => (/^\/(?!dev\/|proc\/)/.test(target) ? path : [])) ?? null;
}

interface FileState {
  /** With the device. */
  inode: string;
  sizeBytes: number;
}

async function statFiles(
  paths: string[],
  deadline: { deadlineMs: number },
): Promise<{ found: Map<string, FileState>; missing: string[] } | null> {
  if (paths.length === 0) return { found: new Map(), missing: [] };
  const outcome = await runTool('stat', ['--dereference', '--format=%d:%i\t%s\t%n', '--', ...paths], deadline);
  if (outcome.deadlinePassed) return null;
  const found = outcome.stdout.split('\n').flatMap((line): [string, FileState][] => {
    const [inode = '', size = '', path = ''] = line.split('\t');
    return path === '' ? [] : [[path, { inode, sizeBytes: Number(size) }]];
  });
  // stat quotes a path as a shell would want it, so the complaints are not taken apart: all say the same, or nothing is concluded.
  const complaints = outcome.stderr.split('\n').filter((line) => line !== '');
  const there = new Map(found);
  const unclear = !complaints.every((line) => line.endsWith(': No such file or directory'));
  return { found: there, missing: unclear ? [] : paths.filter((path) => !there.has(path)) };
}
