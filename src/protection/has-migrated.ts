import { errorText } from '../errors.ts';
import type { LibvirtClient } from '../libvirt/client.ts';
import { domainRunState, shutoffReason } from '../libvirt/constants.ts';
import type { DomainRef } from '../libvirt/types.ts';
import type { Log } from '../log.ts';

/** Whether a domain that does not run has gone to another host. libvirt knows it for as long as it runs itself, of a domain that it still has. */
export async function hasMigrated(client: LibvirtClient, ref: DomainRef | null, log: Log): Promise<boolean> {
  if (ref === null) return false;
  try {
    const { state, reason } = await client.state(ref);
    return state === domainRunState.shutoff && reason === shutoffReason.migrated;
  } catch (error) {
    log.warn('why a domain stopped is not known', { domain: ref.name, error: errorText(error) });
    return false;
  }
}
