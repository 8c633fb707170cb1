import type { PolicyReport } from '../../control/api.ts';
import { PolicyFolder } from '../../protection/rules/policy-folder.ts';
import type { Check } from '../check.ts';
import { ok, trouble } from '../finding.ts';

/** Whether every policy file can be read, and gets what it asks for. */
export const policyFilesCheck: Check<PolicyReport> = {
  name: 'policy-files',
  async gather({ config, agent, report }) {
    if (report !== null) return agent.policies();
    const folder = new PolicyFolder(config.policyDir);
    await folder.read();
    return { folder: folder.folder, files: folder.files, refusals: [] };
  },
  examine: ({ folder, files, refusals }) => {
    const broken = files.flatMap(({ file, problem }) =>
      problem === null
        ? []
        : trouble('error', problem, 'what the file said before holds, if it was ever usable', `correct ${file}`),
    );
    const refused = refusals.map(({ domain, disk, file, why }) =>
      trouble(
        'error',
        `${[domain, disk].filter(Boolean).join(' ')} is not protected: ${why}`,
        `${file} asks for it`,
        'put right what it names; it is tried again by itself',
      ),
    );
    const remarks = [...broken, ...refused];
    return remarks.length > 0 ? remarks : [ok(`${files.length} policy files in ${folder}`)];
  },
};
