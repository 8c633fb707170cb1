import { access } from 'node:fs/promises';
import { join } from 'node:path';
import { loadConfig, parseConfig, type Config } from '../config/config.ts';
import type { AgentReport } from '../control/api.ts';
import type { AgentClient } from '../control/client.ts';
import { parseDomain, type Domain, type DomainDisk } from '../domain/domain.ts';
import { CdpError, errorAndHint } from '../errors.ts';
import { LibvirtClient } from '../libvirt/client.ts';
import { domainRecordSchema, type DiskRecord, type DomainRecord } from '../protection/record.ts';
import { ImageOpener } from '../storage/opener.ts';
import { RecordStore } from '../store/record-store.ts';

/** How long libvirt may take for one answer: a domain that a hook holds up must not hold up the doctor. */
export const libvirtDeadlineMs = 10_000;

/** A disk that is recorded as protected, and what libvirt says of it. */
export interface DeclaredDisk {
  domain: string;
  policy: DomainRecord['policy'];
  record: DiskRecord;
  /** In the domain's definition; undefined if there is none, or libvirt does not tell. */
  defined: DomainDisk | undefined;
  /** In the running domain. */
  live: DomainDisk | undefined;
}

/** What the checks share: it is asked for once. */
export interface HostView {
  configPath: string;
  /** The defaults if the file is broken, but for the store that the agent tells. */
  config: Config;
  configProblem: string | null;
  /** libvirt's folder for hooks. */
  hooksDir: string;
  agent: AgentClient;
  report: AgentReport | null;
  /** Why the agent does not answer. */
  agentProblem: string | null;
  libvirt: LibvirtClient | null;
  libvirtProblem: string | null;
  opener: ImageOpener;
  disks: DeclaredDisk[];
  /** Why not all disks are known, a sentence for each reason. */
  recordProblems: string[];
}

/** @throws CdpError `libvirt-unreachable` */
export function libvirtOf({ libvirt }: HostView): LibvirtClient {
  return libvirtFrom(libvirt);
}

function libvirtFrom(libvirt: LibvirtClient | null): LibvirtClient {
  if (libvirt !== null) return libvirt;
  throw new CdpError({
    code: 'libvirt-unreachable',
    message: 'libvirt does not answer',
    hint: 'see what is said of libvirt above',
  });
}

/** The folder of the records. @throws CdpError `store-unknown` if neither the configuration nor the agent tells */
export function storeOf({ config, configProblem, report }: HostView): string {
  if (configProblem === null || report !== null) return config.store;
  throw new CdpError({
    code: 'store-unknown',
    message: 'where the records are is not known',
    hint: 'see what is said of the configuration above',
  });
}

/** The protected disks. @throws CdpError `store-unknown`; `records-unreadable` if none can be read though there are some */
export function disksOf(host: HostView): DeclaredDisk[] {
  storeOf(host);
  const { disks, recordProblems } = host;
  if (disks.length > 0 || recordProblems.length === 0) return disks;
  throw new CdpError({
    code: 'records-unreadable',
    message: 'which disks are protected is not known',
    hint: 'see what is said of the store above',
  });
}

export interface ViewOptions {
  agent: AgentClient;
  /** Default: the running agent's own, or the usual one. */
  configPath: string;
  hooksDir: string;
  report: AgentReport | null;
  agentProblem: string | null;
}

/** Asks everybody once. Close `libvirt` and `opener` afterwards. */
export async function viewHost(options: ViewOptions): Promise<HostView> {
  const { configPath, report } = options;
  const { configProblem, ...read } = await readConfig(configPath);
  const config = configProblem === null || report === null ? read.config : { ...read.config, store: report.store };
  const { libvirt, libvirtProblem } = await connect(config.libvirt.socket);
  const { records, recordProblems } = await readRecords(config.store);
  const disks = (await Promise.all(records.map((record) => declaredDisks(libvirt, record)))).flat();
  const opener = ImageOpener.of(
    () => libvirtFrom(libvirt),
    () => config,
  );
  return { ...options, config, configProblem, libvirt, libvirtProblem, opener, disks, recordProblems };
}

async function readConfig(path: string): Promise<Pick<HostView, 'config' | 'configProblem'>> {
  try {
    return { config: await loadConfig(path), configProblem: null };
  } catch (error) {
    return { config: parseConfig('', path), configProblem: errorAndHint(error) };
  }
}

async function connect(socketPath: string): Promise<Pick<HostView, 'libvirt' | 'libvirtProblem'>> {
  try {
    return { libvirt: await LibvirtClient.connect({ socketPath }, libvirtDeadlineMs), libvirtProblem: null };
  } catch (error) {
    return { libvirt: null, libvirtProblem: errorAndHint(error) };
  }
}

async function readRecords(storePath: string): Promise<{ records: DomainRecord[]; recordProblems: string[] }> {
  try {
    // Whoever opens a store makes its folders; a doctor changes nothing.
    await access(join(storePath, 'domains'));
    const { records, unreadable } = await (await RecordStore.open(storePath, domainRecordSchema)).all();
    return { records, recordProblems: [...unreadable.values()].map(errorAndHint) };
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return { records: [], recordProblems: [] };
    return { records: [], recordProblems: [errorAndHint(error)] };
  }
}

async function declaredDisks(libvirt: LibvirtClient | null, record: DomainRecord): Promise<DeclaredDisk[]> {
  const { name, uuid, policy } = record;
  const [defined, live] = libvirt === null ? [null, null] : await domainsOf(libvirt, uuid);
  return record.disks.map((disk) => ({
    domain: name,
    policy,
    record: disk,
    defined: defined?.disks.find(({ dev }) => dev === disk.dev),
    live: live?.disks.find(({ dev }) => dev === disk.dev),
  }));
}

/** The domain as it is defined, and as it runs; null for what is not, or what libvirt does not tell in time. */
async function domainsOf(libvirt: LibvirtClient, uuid: string): Promise<[Domain | null, Domain | null]> {
  try {
    const ref = await libvirt.findByUuid(uuid, libvirtDeadlineMs);
    if (ref === null) return [null, null];
    const persistent = await libvirt.isPersistent(ref, libvirtDeadlineMs);
    const xml = async (inactive: boolean): Promise<Domain> =>
      parseDomain(await libvirt.domainXml(ref, { inactive }, libvirtDeadlineMs));
    return [persistent ? await xml(true) : null, ref.id >= 0 ? await xml(false) : null];
  } catch {
    return [null, null];
  }
}
