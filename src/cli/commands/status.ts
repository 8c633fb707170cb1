import { defineCommand, type Context } from '../command.ts';
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
  async run(context, domain, { check }) {
    const { client, out } = context;
    await warnOfPolicies(context, domain);
    const domains = domain === undefined ? await client.domains(false) : [await client.domain(domain)];
    if (out.json) out.value(domains);
    else if (domains.length === 0) out.line('no domain is protected');
    else domains.forEach((one) => statusLines(one, out, Date.now()).forEach((line) => out.line(line)));
    return check ? worst(domains) : exitCodes.done;
  },
});

/** Of the policy files: those that can't be used, and what they ask for in vain, of this domain if one was named. */
async function warnOfPolicies({ client, out }: Context, domain: string | undefined): Promise<void> {
  const { files, refusals } = await client.policies();
  for (const { file, problem } of files) {
    if (problem !== null) out.warn(`warning: ${problem}\n(what ${file} said before still holds)`);
  }
  for (const { domain: name, disk, file, why } of refusals) {
    if (domain === undefined || domain === name)
      out.warn(`warning: ${name}${disk === null ? '' : `'s ${disk}`} is not protected, as ${file} wants: ${why}`);
  }
}

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
