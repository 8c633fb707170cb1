import { existsSync } from 'node:fs';
import { mkdtemp, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { must, run } from '../lab/run.ts';

const kept = '/var/tmp/virt-cdp-promtool';

/** Arguments: an empty folder. The package is not installed: that would start Prometheus. */
const unpack = `
set -e
cd "$1"
apt-get -q download prometheus || { apt-get -q update && apt-get -q download prometheus; }
dpkg-deb --fsys-tarfile prometheus_*.deb | tar -x ./usr/bin/promtool
`;

/** Prometheus's own checker of rules, from the distribution's archive; fetched once, and kept under the temporary directory. */
export async function promtool(): Promise<string> {
  if (existsSync(kept)) return kept;
  const scratch = await mkdtemp(`${kept}-`);
  try {
    // apt gives what it downloads to a user of its own.
    await must('chmod', '755', scratch);
    const { code, stdout, stderr } = await run('sh', ['-c', unpack, 'sh', scratch], { timeoutMs: 120_000 });
    if (code !== 0) throw new Error(`no promtool: ${stdout}${stderr}`);
    await rename(join(scratch, 'usr/bin/promtool'), kept);
  } finally {
    await rm(scratch, { recursive: true });
  }
  return kept;
}
