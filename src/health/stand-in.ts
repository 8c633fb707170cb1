import { runTool } from '../storage/run-tool.ts';

/** Makes an empty file that anybody may read; what is there is left alone. @throws Error if it can't be made */
export async function putStandIn(path: string, deadline: { deadlineMs: number }): Promise<void> {
  const outcome = await runTool('sh', ['-c', 'umask 022; set -C; : > "$1"', 'sh', path], deadline);
  if (outcome.status !== 0) throw new Error(`no file could be put at '${path}': ${outcome.stderr.trim()}`);
}

/** Takes it away again, but nothing that somebody has put there since. */
export async function removeStandIn(path: string, deadline: { deadlineMs: number }): Promise<void> {
  await runTool('find', [path, '-maxdepth', '0', '-type', 'f', '-size', '0', '-delete'], deadline);
}
