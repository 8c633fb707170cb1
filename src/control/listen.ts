import { execFile } from 'node:child_process';
import { lstat, mkdir, unlink } from 'node:fs/promises';
import type { Server } from 'node:http';
import { connect } from 'node:net';
import { dirname } from 'node:path';
import { promisify } from 'node:util';
import { CdpError } from '../errors.ts';

/** Longest time to wait for a sign of life from whoever may be behind an old socket. */
const probeMs = 2000;

const run = promisify(execFile);

/**
 * Listens on a unix socket of mode 0660, of this group if one is named, else of the process's own. A socket that a dead agent left behind is replaced; one that somebody
 * answers on is left alone. The parent folder is created with mode 0755 if it is missing.
 * @throws CdpError `agent-already-running`, `socket-in-the-way` or `cannot-listen`.
 */
export async function listenOnSocket(server: Server, socketPath: string, group: string | null): Promise<void> {
  try {
    await mkdir(dirname(socketPath), { recursive: true, mode: 0o755 });
    await removeStaleSocket(socketPath);
    await listen(server, socketPath);
    if (group !== null) await giveTo(group, server, socketPath);
  } catch (cause) {
    if (cause instanceof CdpError) throw cause;
    if ((cause as NodeJS.ErrnoException).code === 'EADDRINUSE') throw alreadyRunning(socketPath);
    throw new CdpError({
      code: 'cannot-listen',
      message: `cannot listen on ${socketPath}: ${(cause as Error).message}`,
      hint: 'choose another path with the configuration key socket',
      cause,
    });
  }
}

/** The socket file comes into being with its final mode: bind(2) takes it from the umask, within server.listen(). */
function listen(server: Server, socketPath: string): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', reject);
    const umask = process.umask(0o117);
    try {
      server.listen(socketPath, () => {
        server.removeListener('error', reject);
        resolve();
      });
    } finally {
      process.umask(umask);
    }
  });
}

async function giveTo(group: string, server: Server, socketPath: string): Promise<void> {
  try {
    await run('chgrp', ['--', group, socketPath]);
  } catch (cause) {
    server.close();
    throw new CdpError({
      code: 'cannot-listen',
      message: `the socket ${socketPath} can't be given to the group '${group}'`,
      hint: 'name a group of this host with the configuration key socket_group, or leave it out',
      cause,
    });
  }
}

async function removeStaleSocket(socketPath: string): Promise<void> {
  const found = await lstat(socketPath).catch((error: unknown) => {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null;
    throw error;
  });
  if (found === null) return;
  if (!found.isSocket()) {
    throw new CdpError({
      code: 'socket-in-the-way',
      message: `cannot listen on ${socketPath}: it exists and is not a socket`,
      hint: 'remove it, or choose another path with the configuration key socket',
    });
  }
  if (await somebodyAnswers(socketPath)) throw alreadyRunning(socketPath);
  await unlink(socketPath);
}

function alreadyRunning(socketPath: string): CdpError {
  return new CdpError({
    code: 'agent-already-running',
    message: `another agent is running: it answers on ${socketPath}`,
    hint: 'stop it first: systemctl stop virt-cdpd',
  });
}

/** Only a refused connection proves that nobody is there: a live agent may be too busy to accept at once. */
function somebodyAnswers(socketPath: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(socketPath);
    const done = (answer: boolean): void => {
      socket.destroy();
      resolve(answer);
    };
    socket.setTimeout(probeMs, () => done(true));
    socket.once('connect', () => done(true));
    socket.once('error', (error: NodeJS.ErrnoException) => done(error.code !== 'ECONNREFUSED'));
  });
}
