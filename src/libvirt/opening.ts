/** From a socket to a connection that takes calls: authentication, then the driver's URI. */
import { Connection } from './connection.ts';
import type { ConnectionOptions } from './connection.ts';
import { AuthRequiredError } from './errors.ts';
import { procedures } from './procedures.ts';

export interface OpeningOptions extends ConnectionOptions {
  /** Default `qemu:///system`. */
  uri?: string | undefined;
  /** Gives up the opening; of no effect on a connection that is open. */
  signal?: AbortSignal | undefined;
}

const noAuthentication = 0;

/**
 * Rejects with AuthRequiredError if the daemon asks for SASL or polkit, which it does not ask of root; with
 * ConnectionLostError if there is no daemon; with CallTimeoutError if it does not answer, e.g. while it autostarts
 * domains; with LibvirtError if it has no driver for the URI.
 */
export async function openConnection(options: OpeningOptions, deadlineMs?: number): Promise<Connection> {
  const connection = await Connection.open(options);
  const giveUp = (): void => void connection.close();
  options.signal?.addEventListener('abort', giveUp);
  if (options.signal?.aborted === true) giveUp();
  try {
    const offered = await connection.call(procedures.authList, undefined, deadlineMs);
    if (offered.length > 0 && !offered.includes(noAuthentication)) {
      throw new AuthRequiredError(`libvirt at ${options.socketPath} asks for authentication: run as root`);
    }
    await connection.call(procedures.connectOpen, { uri: options.uri ?? 'qemu:///system', flags: 0 }, deadlineMs);
    if (connection.lost !== null) throw connection.lost;
    return connection;
  } catch (error) {
    await connection.close();
    throw error;
  } finally {
    options.signal?.removeEventListener('abort', giveUp);
  }
}
