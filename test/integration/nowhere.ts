import assert from 'node:assert/strict';
import { run } from '../lab/run.ts';

/** No file under the folder, logs, records and events among them, has any of these texts, but for storage and libvirt's own keys. */
export async function assertNowhere(folder: string, texts: string[]): Promise<void> {
  const patterns = texts.flatMap((text) => ['-e', text]);
  const { code, stdout, stderr } = await run('grep', [
    ...['-rlF', '--exclude-dir=ceph', '--exclude-dir=images', '--exclude-dir=secrets', ...patterns],
    folder,
  ]);
  assert.equal(code, 1, `${stdout}${stderr}`);
}
