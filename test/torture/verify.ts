import type { DiskVerdict } from '../../src/protection/model.ts';
import { told, type Outcome } from './remedies.ts';
import { Violation } from './violation.ts';
import type { World } from './world.ts';

/** Whatever happens meanwhile, a verify accuses nothing but what a server's crash can have taken. @throws Violation */
export async function verify(
  world: World,
  { domain, maxBytesPerS }: { domain: string; maxBytesPerS: number },
): Promise<Outcome> {
  const limit = maxBytesPerS === 0 ? {} : { maxBytesPerS };
  let verdicts: DiskVerdict[] = [];
  const outcome = await told(
    world.client.act(domain, 'verify', limit).then((result) => (verdicts = result.verdicts ?? [])),
  );
  for (const { dev, differences } of verdicts) {
    const servers = Object.values(world.disk(domain, dev).copies).map(({ server }) => server);
    if (differences.length === 0 || servers.some((server) => server !== null && world.crashed.has(server))) continue;
    throw new Violation(
      `the verify of ${domain}'s ${dev} accuses what nobody has changed: ${JSON.stringify(differences)}`,
    );
  }
  return outcome;
}
