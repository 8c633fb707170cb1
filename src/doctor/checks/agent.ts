import type { AgentReport } from '../../control/api.ts';
import { version } from '../../control/version.ts';
import type { Check } from '../check.ts';
import { ok, trouble, type Remark } from '../finding.ts';

interface Facts {
  report: AgentReport | null;
  problem: string | null;
  /** Of the program that asks. */
  version: string;
  node: string;
}

/** As package.json's `engines`. */
const oldestNode = '20.19.0';

const untended =
  'a failing copy leaves its guest paused until the agent is back, and a domain that starts is not protected';

/** Whether virt-cdpd answers, on a Node that is new enough, from the same installation as this command. */
export const agentCheck: Check<Facts> = {
  name: 'agent',
  gather: ({ report, agentProblem }) =>
    Promise.resolve({ report, problem: agentProblem, version, node: process.versions.node }),
  examine: ({ report, problem, version, node }) => {
    const remarks: Remark[] = [];
    if (report === null) {
      const what = `the agent does not answer: ${problem ?? ''}`;
      remarks.push(trouble('error', what, untended, 'systemctl enable --now virt-cdpd'));
    } else {
      remarks.push(ok(`the agent answers: version ${report.version}, pid ${report.pid}, up since ${report.startedAt}`));
      if (report.version !== version) {
        const what = `the agent is version ${report.version}, this command is ${version}`;
        remarks.push(trouble('warning', what, 'they may not understand each other', 'systemctl try-restart virt-cdpd'));
      }
      if (!report.libvirtConnected)
        remarks.push(trouble('error', 'libvirt does not answer the agent', untended, 'systemctl restart libvirtd'));
    }
    for (const [who, its] of [
      ['the agent', report?.node],
      ['this command', node],
    ] as const) {
      if (its !== undefined && isOlder(its, oldestNode)) {
        const what = `${who} runs on Node ${its}`;
        remarks.push(trouble('error', what, `nothing older than ${oldestNode} was ever tried`, 'install a newer Node'));
      }
    }
    return remarks;
  },
};

function isOlder(version: string, oldest: string): boolean {
  const [a = [], b = []] = [version, oldest].map((text) => text.split('.').map(Number));
  const index = b.findIndex((part, place) => part !== a[place]);
  return index >= 0 && (a[index] ?? 0) < (b[index] ?? 0);
}
