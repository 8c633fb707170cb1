import { resolve } from 'node:path';
import type { AgentReport } from '../../control/api.ts';
import type { Check } from '../check.ts';
import { ok, trouble, type Remark } from '../finding.ts';

interface Facts {
  path: string;
  problem: string | null;
  store: string;
  report: Pick<AgentReport, 'configPath' | 'configProblem' | 'store'> | null;
}

/** Whether the configuration can be read, and is what the agent goes by. */
export const configurationCheck: Check<Facts> = {
  name: 'configuration',
  gather: ({ configPath, configProblem, config, report }) =>
    Promise.resolve({ path: resolve(configPath), problem: configProblem, store: config.store, report }),
  examine: ({ path, problem, store, report }) => {
    const check = `virt-cdpd --config ${path} --check`;
    if (problem !== null) {
      const why = 'the agent goes on with what it read before, and does not start again';
      return [trouble('error', problem, why, `correct ${path}, then: ${check}`)];
    }
    const remarks: Remark[] = [];
    if (report !== null && report.configPath !== path) {
      const what = `the agent reads ${report.configPath}, and this was asked about ${path}`;
      remarks.push(trouble('warning', what, 'what is told here may be of another installation', 'leave out --config'));
    } else if (report?.configProblem != null) {
      const why = 'the agent goes on with what it read before';
      remarks.push(trouble('error', report.configProblem, why, `correct ${path}, then: ${check}`));
    } else if (report !== null && report.store !== store) {
      const what = `the agent keeps its records in ${report.store}, and ${path} says ${store} by now`;
      remarks.push(trouble('warning', what, 'store is read at the start alone', 'systemctl restart virt-cdpd'));
    }
    return remarks.length > 0 ? remarks : [ok(`${path} is valid${report === null ? '' : ', and in force'}`)];
  },
};
