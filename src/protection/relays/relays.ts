import { spawn, type ChildProcess } from 'node:child_process';
import { closeSync, existsSync, openSync, statSync } from 'node:fs';
import { chown, mkdir, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Image, IscsiSource, NbdSource } from '../../domain/image.ts';
import { CdpError } from '../../errors.ts';
import { breakAllConnections, forgetUnsent } from '../../health/tcp-connections.ts';
import { qemuPid } from '../../libvirt/pid-file.ts';
import type { DomainRef } from '../../libvirt/types.ts';
import { imageOptions } from '../../storage/blockdev.ts';
import { imageName } from '../../storage/image.ts';
import type { ImageOpener } from '../../storage/opener.ts';
import { runTool, toolEnvironment, toolMissing, toolWords } from '../../storage/run-tool.ts';
import {
  killRelays,
  processFile,
  relayFolder,
  relayFoldersIn,
  relayPid,
  relaySocket,
  relaysFolder,
  signal,
} from './relay-folder.ts';

type Owner = Pick<DomainRef, 'uuid' | 'name'>;

/** A process that only has sockets open is gone at once. */
const endDeadlineMs = 5_000;

const pollMs = 10;

/** The shell's exit status where there is no such program. */
const notFound = 127;

/** It notes who it is before it is qemu-nbd, so that none runs of which nobody knows, whenever the agent is killed. */
const launch = `umask 077; cat /proc/$$/stat >"$0/${processFile}" && exec qemu-nbd "$@"`;

/**
 * QEMU's own iSCSI initiator waits without end for a target that is gone, and nothing makes QEMU let go of it. So QEMU gets a mirror on one by
 * NBD, from a process that has that initiator: its relay (docs/decisions/relays.md).
 *
 * INVARIANTS
 * - A disk has one relay at most: a former one is dead before another one, or anybody else, opens the mirror for the domain.
 * - It serves one client, QEMU, and ends when that goes. It knows nothing of the agent, and outlives it.
 */
export class Relays {
  readonly #agentSocket: () => string;
  readonly #opener: ImageOpener;

  constructor(agentSocket: () => string, opener: ImageOpener) {
    this.#agentSocket = agentSocket;
    this.#opener = opener;
  }

  /** The process of a disk's relay; null if none runs. */
  pidOf({ uuid }: Owner, dev: string): number | null {
    return relayPid(relayFolder(this.#folder, uuid, dev));
  }

  /**
   * The mirror as QEMU is to open it: itself, or what a relay that has just been started for it serves.
   * @throws CdpError `relay-failed`, `tool-missing`, and as ImageOpener.prepare and forgetUnsent
   */
  async reach(owner: Owner, dev: string, image: Image, deadlineMs: number): Promise<Image> {
    const { source } = image;
    if (source.kind !== 'iscsi') return image;
    const folder = relayFolder(this.#folder, owner.uuid, dev);
    await this.#end(folder);
    await forgetUnsent(source);
    await mkdir(folder, { recursive: true, mode: 0o711 });
    const socket = await this.#start(folder, owner, source, deadlineMs);
    return { ...image, source: { kind: 'nbd', server: { socket }, exportName: '' } satisfies NbdSource };
  }

  /** Starts a relay that has ended again, in its place: QEMU makes a new connection to it at its next request. @throws as reach */
  async revive(owner: Owner, dev: string, image: Image, deadlineMs: number): Promise<void> {
    const wasThere = existsSync(relayFolder(this.#folder, owner.uuid, dev));
    if (wasThere && this.pidOf(owner, dev) === null) await this.reach(owner, dev, image, deadlineMs);
  }

  /** Ends a disk's relay, if there is one. @throws CdpError `relay-failed` if the kernel does not let go of it */
  end({ uuid }: Owner, dev: string): Promise<void> {
    return this.#end(relayFolder(this.#folder, uuid, dev));
  }

  /** Ends those of all disks of a domain. @throws as end */
  async endAll({ uuid }: Owner): Promise<void> {
    await Promise.all(relayFoldersIn(this.#folder, uuid).map((folder) => this.#end(folder)));
  }

  /** Those of a domain that is about to start: without waiting, since libvirt does. */
  kill(uuid: string): void {
    killRelays(this.#folder, uuid);
  }

  get #folder(): string {
    return relaysFolder(this.#agentSocket());
  }

  /** Answers with its socket when the LUN is open. */
  async #start(folder: string, owner: Owner, source: IscsiSource, deadlineMs: number): Promise<string> {
    const lun: Image = { source: { ...source, initiator: source.initiator ?? initiatorOf(owner) }, format: 'raw' };
    const { access, secrets } = await this.#opener.prepare(lun, 'virt-cdp');
    const key = this.#opener.toolSecrets(secrets);
    const socket = relaySocket(folder);
    const ready = join(folder, 'ready');
    const logPath = join(folder, 'log');
    const args = [
      ...[`--socket=${socket}`, `--pid-file=${ready}`, '--cache=none', '--discard=unmap'],
      ...(key?.args ?? []),
      imageOptions(lun, access),
    ];
    const log = openSync(logPath, 'w', 0o600);
    const relay = spawn('sh', ['-c', launch, folder, ...args], {
      cwd: '/',
      detached: true,
      env: toolEnvironment(),
      stdio: ['ignore', 'ignore', log, ...(key === null ? [] : [key.fd])],
    });
    relay.unref();
    closeSync(log);
    const problem = await problemOf(relay, ready, deadlineMs);
    if (problem !== null) {
      relay.kill('SIGKILL');
      throw relay.exitCode === notFound ? toolMissing('qemu-nbd') : failed(lun, `${problem}${await said(logPath)}`);
    }
    // So that QEMU can connect to it again by itself.
    const qemu = qemuPid(owner.name);
    if (qemu !== null) await chown(socket, ...ownerOf(qemu));
    return socket;
  }

  /** Stopped while its connections are broken: it would only make others, and send again what hangs in it. */
  async #end(folder: string): Promise<void> {
    const pid = relayPid(folder);
    if (pid !== null) {
      signal(pid, 'SIGSTOP');
      await breakAllConnections(pid).catch(() => undefined);
      if (relayPid(folder) === pid) signal(pid, 'SIGKILL');
      const endMs = Date.now() + endDeadlineMs;
      while (relayPid(folder) !== null) {
        if (Date.now() > endMs) throw stays(pid);
        await sleep(pollMs);
      }
    }
    await rm(folder, { recursive: true, force: true });
  }
}

/** @throws CdpError `tool-missing` if this host has none */
export async function requireRelays(): Promise<void> {
  await runTool('qemu-nbd', ['--version'], { deadlineMs: endDeadlineMs });
}

/** As QEMU itself would present itself, and does where libvirt opens the LUN (block/iscsi.c: get_initiator_name). */
function initiatorOf({ uuid }: Owner): string {
  return `iqn.2008-11.org.linux-kvm:${uuid}`;
}

/** Why a relay that was started does not become ready; null if it does. qemu-nbd writes its pid file when it has opened the image. */
async function problemOf(relay: ChildProcess, ready: string, deadlineMs: number): Promise<string | null> {
  const begun: { problem: string | null } = { problem: null };
  relay.once('error', (error) => (begun.problem = error.message));
  const endMs = Date.now() + deadlineMs;
  while (!existsSync(ready)) {
    if (begun.problem !== null) return begun.problem;
    if (relay.exitCode !== null || relay.signalCode !== null) return 'its relay ended';
    if (Date.now() > endMs) return `its relay was not ready within ${deadlineMs} ms`;
    await sleep(pollMs);
  }
  return null;
}

async function said(logPath: string): Promise<string> {
  const words = toolWords(await readFile(logPath, 'utf8').catch(() => ''));
  return words === '' ? '' : `: ${words}`;
}

function ownerOf(pid: number): [uid: number, gid: number] {
  const { uid, gid } = statSync(`/proc/${pid}`);
  return [uid, gid];
}

function failed(lun: Image, why: string): CdpError {
  return new CdpError({
    code: 'relay-failed',
    message: `'${imageName(lun)}' could not be opened for QEMU: ${why}`,
    hint: 'see whether the target and the way to it are in order',
  });
}

function stays(pid: number): CdpError {
  return new CdpError({
    code: 'relay-failed',
    message: `the relay of a mirror (qemu-nbd, process ${pid}) can not be ended`,
    hint: 'nothing else may open the mirror before it is gone: see what it waits for',
  });
}
