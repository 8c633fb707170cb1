import { defineCommand } from '../command.ts';
import { exitCodes } from '../exit.ts';
import { formatTable, formatTime } from '../format.ts';
import { currentCopies } from '../status-text.ts';
import type { DomainStatus } from '../../protection/model.ts';

export const list = defineCommand({
  name: 'list',
  summary: 'protected domains, a line each',
  domain: 'none',
  options: { all: { summary: 'also those without a declaration' } },
  async run({ client, out }, _domain, { all }) {
    const domains = await client.domains(all);
    if (out.json) out.value(domains);
    else for (const line of listLines(domains, out.tty ? out.columns : Infinity)) out.line(line);
    return exitCodes.done;
  },
});

function listLines(domains: readonly DomainStatus[], columns: number): string[] {
  if (domains.length === 0) return ['no domain is protected'];
  const rows = [
    ['NAME', 'RUN', 'PROTECTION', 'CURRENT', 'SINCE'],
    ...domains.map((status) => [
      status.domain,
      status.running ? 'running' : 'stopped',
      status.disks.length === 0 && status.problem === undefined ? '-' : status.state,
      currentCopies(status),
      since(status),
    ]),
  ];
  return formatTable(rows, columns);
}

/** When the disk that gives the domain its state got there. */
function since(status: DomainStatus): string {
  const disk = status.disks.find(({ state }) => state === status.state) ?? status.disks[0];
  return disk ? formatTime(disk.since) : '-';
}
