import { mkdir, mkdtemp, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/** A thread as /proc shows it; one that has just ended is listed, and nothing is found there. */
export type Thread = 'ended' | { state: 'D' | 'S'; call: string };

/** What the kernel tells of process 7, with these threads, and descriptors that lead to these paths. */
export async function withProcess(
  { threads, open }: { threads: Record<string, Thread>; open: Record<string, string> },
  look: (proc: string) => Promise<void>,
): Promise<void> {
  const proc = await mkdtemp(join(tmpdir(), 'virt-cdp-'));
  try {
    await mkdir(join(proc, '7/fd'), { recursive: true });
    for (const [fd, path] of Object.entries(open)) await symlink(path, join(proc, '7/fd', fd));
    for (const [id, thread] of Object.entries(threads)) {
      const folder = join(proc, '7/task', id);
      await mkdir(folder, { recursive: true });
      if (thread === 'ended') continue;
      await writeFile(join(folder, 'stat'), `${id} (worker) ${thread.state} 1 7 7`);
      await writeFile(join(folder, 'schedstat'), '100 20 3\n');
      await writeFile(join(folder, 'syscall'), `${thread.call}\n`);
    }
    await look(proc);
  } finally {
    await rm(proc, { recursive: true });
  }
}
