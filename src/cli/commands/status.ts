import { defineCommand } from '../command.ts';
import type { ExitCode } from '../exit.ts';
import { exitCodes } from '../exit.ts';
import { statusLines } from '../status-text.ts';
import type { DiskStatus, DomainStatus } from '../../protection/model.ts';

export const status = defineCommand({
  name: 'status',
  summary: 'one domain, or all protected ones, in full',
  description: 'With --check the exit code is 0 if all is protected, 10 if degraded, 11 if broken.',
  domain: 'optional',
  options: { check: { summary: 'for monitoring: tell the worst state by the exit code' } },
  async run({ client, out }, domain, { check }) {
    const domains = domain === undefined ? await client.domains(false) : [await client.domain(domain)];
    if (out.json) out.value(domains);
    else if (domains.length === 0) out.line('no domain is protected');
    else domains.forEach((one) => statusLines(one, out, Date.now()).forEach((line) => out.line(line)));
    return check ? worst(domains) : exitCodes.done;
  },
});

function worst(domains: readonly DomainStatus[]): ExitCode {
  const codes = domains.flatMap(({ disks }) => (disks.length === 0 ? [exitCodes.degraded] : disks.map(checkCode)));
  if (codes.includes(exitCodes.broken)) return exitCodes.broken;
  return codes.includes(exitCodes.degraded) ? exitCodes.degraded : exitCodes.done;
}

/** A disk of a domain that does not run is as good as its copies. */
function checkCode({ state, primary, mirror }: DiskStatus): ExitCode {
  if (state === 'broken') return exitCodes.broken;
  if (state === 'protected') return exitCodes.done;
  if (state !== 'stopped') return exitCodes.degraded;
  if (primary.current && mirror.current) return exitCodes.done;
  return primary.current || mirror.current ? exitCodes.degraded : exitCodes.broken;
}
