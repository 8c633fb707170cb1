import { dirname } from 'node:path';
import { z } from 'zod';
import type { FileSource, Image, IscsiSource, NbdSource } from '../domain/image.ts';
import { CdpError, errorText } from '../errors.ts';
import { hasWriteCache } from '../iscsi/client.ts';
import { imageName } from './image.ts';
import { secretId } from './kind.ts';
import { nbdOffersFlush } from './nbd-answer.ts';
import { runTool, toolWords } from './run-tool.ts';
import type { LookOptions } from './tools.ts';

/** Of storage, as a sentence. `known`: it is so; otherwise it could not be found out whether it is, though that can be asked. */
export interface Doubt {
  what: string;
  known: boolean;
}

/**
 * Why storage may lose what it has acknowledged, or what was flushed; null if nothing speaks against it, or nobody can tell: a server that
 * ignores flushes and a disk that lies about its cache are not found out.
 */
export async function durabilityDoubt(image: Image, options: LookOptions): Promise<Doubt | null> {
  const { source } = image;
  switch (source.kind) {
    case 'nbd':
      return ofServer({ ...image, source }, options);
    case 'file':
      return ofFileSystem({ ...image, source }, options);
    case 'iscsi':
      return ofLun({ ...image, source }, options);
    case 'block':
    case 'rbd':
      return null;
  }
}

const known = (what: string): Doubt => ({ what, known: true });

const unknown = (what: string): Doubt => ({ what, known: false });

async function ofServer(image: Image & { source: NbdSource }, options: LookOptions): Promise<Doubt | null> {
  const { source } = image;
  const answer =
    'tls' in source.server ? await byTls(image, options) : await nbdOffersFlush(source, options.deadlineMs);
  if (answer === true) return null;
  const server = `the NBD server of '${imageName(image)}'`;
  if (answer === false)
    return known(`${server} offers no flush: what it has not written yet is lost if it loses power`);
  return unknown(`whether ${server} offers flushes could not be found out: ${answer}`);
}

const serverInfo = z.object({ exports: z.array(z.object({ can_flush: z.boolean() })).min(1) });

/** By nbdinfo, since TLS is not spoken here; why it is not known. */
async function byTls(image: Image & { source: NbdSource }, options: LookOptions): Promise<boolean | string> {
  const { certificates } = await options.opener.prepare(image, 'virt-cdp');
  const tls = certificates === null ? '' : `?tls-certificates=${encodeURI(certificates.dir)}`;
  try {
    const uri = `${imageName(image)}${tls}`;
    const { stdout, stderr, deadlinePassed } = await runTool('nbdinfo', ['--no-content', '--json', uri], options);
    if (deadlinePassed) return 'it did not answer in time';
    const info = serverInfo.safeParse(parsed(stdout));
    return info.data?.exports[0]?.can_flush ?? (toolWords(stderr) || 'nbdinfo did not say');
  } catch (error) {
    if (!(error instanceof CdpError && error.code === 'tool-missing')) throw error;
    return 'by TLS that takes nbdinfo, which is not installed (libnbd-bin on Debian and Ubuntu, libnbd on Fedora and RHEL)';
  }
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

async function ofFileSystem(image: Image & { source: FileSource }, options: LookOptions): Promise<Doubt | null> {
  const args = ['--noheadings', '--output', 'FSTYPE,OPTIONS', '--target', dirname(image.source.path)];
  const { stdout } = await runTool('findmnt', args, options);
  const [type = '', mountOptions = ''] = stdout.trim().split(/\s+/);
  if (type === 'tmpfs' || type === 'ramfs')
    return known(`'${imageName(image)}' lies in memory (${type}): it is lost with its host`);
  const without = mountOptions.split(',').find((option) => option === 'nobarrier' || option === 'barrier=0');
  if (without === undefined) return null;
  const where = `'${imageName(image)}' lies on a file system that is mounted with ${without}`;
  return known(`${where}: what was flushed may be lost if its host loses power`);
}

/** Under which QEMU's tools present themselves (block/iscsi.c: get_initiator_name). */
const toolInitiator = 'iqn.2008-11.org.linux-kvm';

/** By WCE in its caching mode page; only a session of one's own shows it. */
async function ofLun(image: Image & { source: IscsiSource }, options: LookOptions): Promise<Doubt | null> {
  const name = `'${imageName(image)}'`;
  try {
    const { access, secrets } = await options.opener.prepare(image, 'virt-cdp');
    const secret = secrets.find(({ id }) => id === secretId(access, 'login'));
    const { host, port, target, lun, initiator, login } = image.source;
    const volatile = await hasWriteCache(
      {
        ...{ host, port, target, lun, initiator: initiator ?? toolInitiator },
        login: login !== null && secret !== undefined ? { username: login.username, password: secret.value } : null,
      },
      options.deadlineMs,
    );
    if (volatile === null)
      return unknown(`whether the LUN ${name} has a write cache can't be known: it has no caching mode page`);
    if (!volatile) return null;
    return known(
      `the LUN ${name} has a write cache (WCE): if its server loses power, acknowledged writes are lost, and QEMU's initiator, which ` +
        `reconnects by itself, tells nobody; turn the cache off at the target`,
    );
  } catch (error) {
    return unknown(`whether the LUN ${name} has a write cache could not be read: ${errorText(error)}`);
  }
}
