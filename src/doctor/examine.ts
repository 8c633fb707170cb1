import { CdpError, errorText } from '../errors.ts';
import type { Check } from './check.ts';
import { agentCheck } from './checks/agent.ts';
import { clockCheck } from './checks/clock.ts';
import { configurationCheck } from './checks/configuration.ts';
import { copiesCheck } from './checks/copies.ts';
import { durabilityCheck } from './checks/durability.ts';
import { emulatorCheck } from './checks/emulator.ts';
import { fileOwnersCheck } from './checks/file-owners.ts';
import { hookCheck } from './checks/hook.ts';
import { libvirtCheck } from './checks/libvirt.ts';
import { permissionsCheck } from './checks/permissions.ts';
import { policyFilesCheck } from './checks/policy-files.ts';
import { primariesCheck } from './checks/primaries.ts';
import { relaysCheck } from './checks/relays.ts';
import { spaceCheck } from './checks/space.ts';
import { stopPolicyCheck } from './checks/stop-policy.ts';
import { storeCheck } from './checks/store.ts';
import { trouble, type Finding } from './finding.ts';
import { viewHost, type HostView, type ViewOptions } from './host-view.ts';

type Examination = (host: HostView) => Promise<Finding[]>;

/** Every check, in the order in which a new host is put right. */
const examinations: readonly Examination[] = [
  examination(libvirtCheck),
  examination(emulatorCheck),
  examination(hookCheck),
  examination(configurationCheck),
  examination(agentCheck),
  examination(storeCheck),
  examination(policyFilesCheck),
  examination(stopPolicyCheck),
  examination(permissionsCheck),
  examination(fileOwnersCheck),
  examination(copiesCheck),
  examination(durabilityCheck),
  examination(primariesCheck),
  examination(relaysCheck),
  examination(spaceCheck),
  examination(clockCheck),
];

/** Examines this host. What can't be found out is a finding, too; nothing is changed. */
export async function examineHost(options: ViewOptions): Promise<Finding[]> {
  const host = await viewHost(options);
  try {
    return (await Promise.all(examinations.map((examine) => examine(host)))).flat();
  } finally {
    host.opener.close();
    await host.libvirt?.close();
  }
}

function examination<Facts>(check: Check<Facts>): Examination {
  return async (host) => {
    try {
      return check.examine(await check.gather(host)).map((remark) => ({ check: check.name, ...remark }));
    } catch (error) {
      const hint = error instanceof CdpError ? error.hint : undefined;
      const remark = trouble('unknown', errorText(error), 'it could not be examined', hint ?? 'run this as root');
      return [{ check: check.name, ...remark }];
    }
  };
}
