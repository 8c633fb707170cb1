import { createHash, randomUUID } from 'node:crypto';
import { mkdir, readFile, rename, writeFile } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import type { RbdSource } from '../domain/image.ts';
import { CdpError, errorText } from '../errors.ts';

/** What tells which settings an image's client has. */
type CephClient = Pick<RbdSource, 'config' | 'login'>;

/** Its name, and what it says as it is written there. */
type Option = [name: string, value: string];

type Sections = Map<string, Option[]>;

/** Where librbd looks if nothing is said. */
const defaultConfig = '/etc/ceph/ceph.conf';

/** Ceph's options by which a cluster that is gone becomes an I/O error; by default its clients wait, 5 minutes or for ever. */
const timeouts = ['rados_osd_op_timeout', 'rados_mon_op_timeout', 'client_mount_timeout'];

/** Passwords of whatever kind, and all that is the object gateway's alone; a `keyring` and a `keyfile` are paths. */
const secretOption = /^rgw_|(?:^|_)(?:key|secret|password|token)s?(?:_|$)/;

/**
 * The client's configuration of an image as a file in `folder` that any process can read: what the administrator's own file says to this
 * client, without passwords, and with the agent's time-outs in place of those that are there. Folders are named by the content, and it never
 * changes; the file keeps its name, of which Ceph's client makes `$cluster`, and so where it looks for a keyring.
 * @throws CdpError `ceph-config-unreadable` for a file that the image's `<config>` names; `ceph-key-in-config` where the image would be opened
 *   by a key that is in the file.
 */
export async function writeCephConfig(folder: string, client: CephClient, timeoutMs: number): Promise<string> {
  const sections = sectionsOf(await readConfig(client));
  const options = clientOptions(sections, client);
  if (client.login === null && options.has('key')) throw keyInConfig(client);
  const seconds = Math.max(1, Math.round(timeoutMs / 1000));
  for (const option of timeouts) options.set(option, String(seconds));
  const harmless = [...options].filter(([option]) => !secretOption.test(option));
  const text = [['global', harmless] as const, ...monitorsOf(sections)].map(sectionText).join('');
  const path = join(folder, `ceph-${hash(text)}`, basename(client.config ?? defaultConfig));
  await mkdir(dirname(path), { recursive: true, mode: 0o755 });
  const draft = `${path}.${randomUUID()}`;
  await writeFile(draft, text, { mode: 0o644 });
  await rename(draft, path);
  return path;
}

function hash(text: string): string {
  return createHash('sha256').update(text).digest('hex').slice(0, 16);
}

/** Whether a client that goes by the image's own configuration, as libvirt's does, fails in the end when the cluster is gone. */
export async function hasCephTimeout(client: CephClient): Promise<boolean> {
  const text = await readConfig(client).catch(() => '');
  return isDuration(clientOptions(sectionsOf(text), client).get('rados_osd_op_timeout'));
}

/**
 * What a configuration says to this client, as it is written there. That of its own section goes before what is in `[client]`, and that
 * before `[global]`; of a repeated option the last.
 */
function clientOptions(sections: Sections, { login }: CephClient): Map<string, string> {
  const own = `client.${login?.username ?? 'admin'}`;
  return new Map(['global', 'client', own].flatMap((each) => sections.get(each) ?? []));
}

/** Where the monitors are that have sections of their own (Ceph's mon/MonMap.cc: init_with_config_file). */
function monitorsOf(sections: Sections): [string, Option[]][] {
  return [...sections].flatMap(([name, options]) => {
    const addresses = options.filter(([option]) => option === 'mon_addr');
    return name.startsWith('mon.') && addresses.length > 0 ? [[name, addresses]] : [];
  });
}

const sectionText = ([name, options]: readonly [string, Option[]]): string =>
  `[${name}]\n${options.map(([option, value]) => `${option} = ${value}\n`).join('')}`;

/** Spaces in names are underscores, dashes are not (tried with ceph-conf of Ceph 16; its common/ConfUtils.cc). */
function sectionsOf(text: string): Sections {
  const sections: Sections = new Map();
  let section = 'global';
  for (const line of text.replaceAll(/\\\r?\n/g, '').split('\n')) {
    const heading = /^\s*\[([^\]]*)\]/.exec(line);
    const setting = /^\s*([^=[#;]+)=((?:\\.|[^#;\\])*)/.exec(line);
    if (heading !== null) section = heading[1] ?? '';
    else if (setting !== null) {
      const [, name = '', value = ''] = setting;
      const lines = sections.get(section) ?? [];
      sections.set(section, [...lines, [name.trim().replaceAll(/\s+/g, '_'), value.trim()]]);
    }
  }
  return sections;
}

/** More than none, as Ceph's parse_timespan (common/ceph_time.cc) takes it; what that does not take counts as none. */
function isDuration(value = ''): boolean {
  const unit = 's|sec|seconds?|m|min|minutes?|hr?|hours?|d|days?';
  const text = value.replace(/^(["'])(.*)\1$/, '$2');
  return new RegExp(`^(?:\\d+|(?:\\d+\\s*(?:${unit})\\s*)+)$`).test(text) && /[1-9]/.test(text);
}

async function readConfig({ config }: CephClient): Promise<string> {
  try {
    return await readFile(config ?? defaultConfig, 'utf8');
  } catch (cause) {
    if (config === null) return '';
    throw new CdpError({
      code: 'ceph-config-unreadable',
      message: `Ceph's configuration could not be read: ${errorText(cause)}`,
      hint: "see the <config file='...'> of the disk",
      cause,
    });
  }
}

function keyInConfig({ config }: CephClient): CdpError {
  return new CdpError({
    code: 'ceph-key-in-config',
    message: `the image is to be opened by a key that is in ${config ?? defaultConfig}, which the agent hands on to nobody`,
    hint: "make it a libvirt secret of type ceph, and name the user and the secret by <auth> of the disk's XML (--mirror-xml)",
  });
}
