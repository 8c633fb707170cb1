import { join } from 'node:path';
import { CdpError } from '../errors.ts';
import { runTool } from './run-tool.ts';

const sampleMebibytes = 32;

/**
 * Bytes per second at which a new file in a folder is written and flushed, from a small sample of noise, which no file system
 * can compress. At the deadline the sample is taken for written.
 * @throws CdpError `folder-not-writable`; `tool-missing`.
 */
export async function measureWriteRate(folder: string, { deadlineMs }: { deadlineMs: number }): Promise<number> {
  const sample = join(folder, 'virt-cdp-write-rate');
  const beganMs = performance.now();
  const writing = ['if=/dev/urandom', `of=${sample}`, 'bs=1M', `count=${sampleMebibytes}`, 'conv=fsync', 'status=none'];
  const outcome = await runTool('dd', writing, { deadlineMs });
  const seconds = (performance.now() - beganMs) / 1000;
  await runTool('rm', ['--force', '--', sample], { deadlineMs });
  if (outcome.status !== 0 && !outcome.deadlinePassed) {
    throw new CdpError({
      code: 'folder-not-writable',
      message: `nothing could be written to '${folder}': ${outcome.stderr.trim()}`,
    });
  }
  return (sampleMebibytes * 2 ** 20) / seconds;
}
