import { defineCommand, type Context } from '../command.ts';
import type { ExitCode } from '../exit.ts';
import { exitCodes } from '../exit.ts';
import { statusLines } from '../status-text.ts';
import type { DiskStatus, DomainStatus } from '../../protection/model.ts';

export const status = defineCommand({
  name: 'status',
  summary: 'one domain, or all protected ones, in full',
  description:
    'With --check there is one line, with performance data as monitoring plugins have it, and the exit code is 0 if all is ' +
    'protected, 10 if degraded, 11 if broken.',
  domain: 'optional',
  options: { check: { summary: 'for monitoring: tell the worst state by the exit code' } },
  async run(context, domain, { check }) {
    const { client, out } = context;
    await warnOfPolicies(context, domain);
    const domains = domain === undefined ? await client.domains(false) : [await client.domain(domain)];
    if (out.json) out.value(domains);
    else if (check) out.line(checkLine(domains, Date.now()));
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

/** `DEGRADED: db vda exposed; 3 of 4 disks protected | protected=3 degraded=1 ...` */
function checkLine(domains: readonly DomainStatus[], nowMs: number): string {
  const disks = domains.flatMap(({ domain, disks }) => disks.map((disk) => ({ domain, disk, code: checkCode(disk) })));
  const count = (code: ExitCode): number => disks.filter((one) => one.code === code).length;
  const code = worst(domains);
  const word = code === exitCodes.broken ? 'BROKEN' : code === exitCodes.degraded ? 'DEGRADED' : 'OK';
  const bad = [
    ...domains.flatMap(({ domain, problem }) => (problem === undefined ? [] : `${domain} is not served`)),
    ...disks.flatMap(({ domain, disk, code }) =>
      code === exitCodes.done ? [] : `${domain} ${disk.dev} ${disk.state}`,
    ),
  ];
  const good = count(exitCodes.done);
  const since = disks.flatMap(({ disk }) => (disk.exposedSince === null ? [] : Date.parse(disk.exposedSince)));
  const exposedS = since.length === 0 ? 0 : Math.round(Math.max(0, nowMs - Math.min(...since)) / 1000);
  const exposedB = disks.reduce((sum, { disk }) => sum + (disk.exposedBytes ?? 0), 0);
  const told = [...bad, `${good} of ${disks.length} disks protected`].join('; ').replaceAll('|', ' ');
  const counts = `protected=${good} degraded=${count(exitCodes.degraded)} broken=${count(exitCodes.broken)}`;
  return `${word}: ${told} | ${counts} exposed=${exposedS}s exposed_bytes=${exposedB}B`;
}

function worst(domains: readonly DomainStatus[]): ExitCode {
  const codes = domains.flatMap(({ disks, problem }) => {
    if (problem !== undefined) return [exitCodes.broken];
    return disks.length === 0 ? [exitCodes.degraded] : disks.map(checkCode);
  });
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
