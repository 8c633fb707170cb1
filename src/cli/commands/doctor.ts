import { defaultConfigPath } from '../../config/config.ts';
import type { AgentReport } from '../../control/api.ts';
import type { AgentClient } from '../../control/client.ts';
import { examineHost } from '../../doctor/examine.ts';
import type { Finding, Severity } from '../../doctor/finding.ts';
import { errorText } from '../../errors.ts';
import { defineCommand } from '../command.ts';
import { exitCodes } from '../exit.ts';
import type { Output, Style } from '../output.ts';

export const doctor = defineCommand({
  name: 'doctor',
  summary: 'whether this host has what protection needs, and what to type where it has not',
  description:
    'Run it as root. It changes nothing, and works while the agent is down. Exits 1 if anything is an error. With --json: an array of ' +
    'objects with check, severity (ok, unknown, warning, error), what, why and fix.',
  domain: 'none',
  options: {
    config: { value: 'FILE', summary: "the agent's configuration (default: the one the running agent has read)" },
    dir: { value: 'DIR', summary: "libvirt's hooks (default /etc/libvirt/hooks)" },
  },
  async run({ client, out }, _domain, { config, dir = '/etc/libvirt/hooks' }) {
    const { report, agentProblem } = await askAgent(client);
    const findings = await examineHost({
      agent: client,
      report,
      agentProblem,
      configPath: config ?? report?.configPath ?? defaultConfigPath,
      hooksDir: dir,
    });
    if (out.json) out.value(findings);
    else for (const line of findings.flatMap((finding) => findingLines(finding, out))) out.line(line);
    return findings.some(({ severity }) => severity === 'error') ? exitCodes.failed : exitCodes.done;
  },
});

async function askAgent(client: AgentClient): Promise<{ report: AgentReport | null; agentProblem: string | null }> {
  try {
    return { report: await client.report(), agentProblem: null };
  } catch (error) {
    return { report: null, agentProblem: errorText(error) };
  }
}

const styles: Record<Severity, Style> = { ok: 'green', unknown: 'dim', warning: 'yellow', error: 'red' };

function findingLines({ check, severity, what, why, fix }: Finding, out: Output): string[] {
  const indent = ' '.repeat(24);
  const lines = [
    `${check.padEnd(15)}${out.style(styles[severity], severity.padEnd(9))}${what.replaceAll('\n', `\n${indent}`)}`,
  ];
  if (why !== null) lines.push(`${indent}why:  ${why}`);
  if (fix !== null) lines.push(`${indent}type: ${fix}`);
  return lines;
}
