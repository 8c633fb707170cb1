import { dirname } from 'node:path';
import { z } from 'zod';
import type { FileSource, Image, IscsiSource, NbdSource } from '../domain/image.ts';
import { CdpError, errorText } from '../errors.ts';
import { hasWriteCache } from '../iscsi/client.ts';
import { imageName } from './image.ts';
import { secretId } from './kind.ts';
import { runTool } from './run-tool.ts';
import type { LookOptions } from './tools.ts';

/**
 * Why storage may lose what it has acknowledged, or what was flushed, as a sentence; null if nothing speaks against it, or nobody can
 * tell: a server that ignores flushes and a disk that lies about its cache are not found out.
 */
export async function durabilityProblem(image: Image, options: LookOptions): Promise<string | null> {
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

const serverInfo = z.object({ exports: z.array(z.object({ can_flush: z.boolean().optional() })).min(1) });

/** By NBD_FLAG_SEND_FLUSH, without which QEMU's client takes every flush for done (block/nbd.c: nbd_client_co_flush). */
async function ofServer(image: Image & { source: NbdSource }, options: LookOptions): Promise<string | null> {
  const { certificates } = await options.opener.prepare(image, 'virt-cdp');
  const tls = certificates === null ? '' : `?tls-certificates=${encodeURI(certificates.dir)}`;
  const uri = `${imageName(image)}${tls}`;
  let stdout: string;
  try {
    ({ stdout } = await runTool('nbdinfo', ['--no-content', '--json', uri], options));
  } catch (error) {
    if (error instanceof CdpError && error.code === 'tool-missing') return null;
    throw error;
  }
  const info = serverInfo.safeParse(parsed(stdout));
  if (info.data?.exports[0]?.can_flush !== false) return null;
  return `the NBD server of '${imageName(image)}' offers no flush: what it has not written yet is lost if it loses power`;
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

async function ofFileSystem(image: Image & { source: FileSource }, options: LookOptions): Promise<string | null> {
  const args = ['--noheadings', '--output', 'FSTYPE,OPTIONS', '--target', dirname(image.source.path)];
  const { stdout } = await runTool('findmnt', args, options);
  const [type = '', mountOptions = ''] = stdout.trim().split(/\s+/);
  if (type === 'tmpfs' || type === 'ramfs')
    return `'${imageName(image)}' lies in memory (${type}): it is lost with its host`;
  const without = mountOptions.split(',').find((option) => option === 'nobarrier' || option === 'barrier=0');
  if (without === undefined) return null;
  return `'${imageName(image)}' lies on a file system that is mounted with ${without}: what was flushed may be lost if its host loses power`;
}

/** Under which QEMU's tools present themselves (block/iscsi.c: get_initiator_name). */
const toolInitiator = 'iqn.2008-11.org.linux-kvm';

/** By WCE in its caching mode page; only a session of one's own shows it. */
async function ofLun(image: Image & { source: IscsiSource }, options: LookOptions): Promise<string | null> {
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
    if (volatile !== true) return null;
    return (
      `the LUN ${name} has a write cache (WCE): if its server loses power, acknowledged writes are lost, and QEMU's initiator, which ` +
      `reconnects by itself, tells nobody; turn the cache off at the target`
    );
  } catch (error) {
    return `whether the LUN ${name} has a write cache could not be read: ${errorText(error)}`;
  }
}
