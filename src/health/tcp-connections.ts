import { CdpError } from '../errors.ts';
import { runTool } from '../storage/run-tool.ts';

/** The two ends as `ss` (iproute2) writes and takes them: `ADDRESS:PORT`, IPv6 in brackets. */
interface Connection {
  local: string;
  peer: string;
}

const deadlineMs = 5_000;

/**
 * Has the kernel break a process's connections to a server (tcp_abort, with CONFIG_INET_DIAG_DESTROY as distributions have it), as if the
 * server had; nobody's help is needed. Only if there are just so many as expected: the others may be anybody's.
 * @returns whether they are gone
 */
export async function breakConnections(
  pid: number,
  address: { host: string; port: number },
  expected: number,
): Promise<boolean> {
  const server = serverText(address);
  const connections = await established(pid, server);
  if (connections.length !== expected) return false;
  await breakThese(connections);
  const left = (await established(pid, server)).map(({ local }) => local);
  return !connections.some(({ local }) => left.includes(local));
}

/** As breakConnections, wherever they lead: what a process was to send, and has not yet, is never sent. */
export async function breakAllConnections(pid: number): Promise<void> {
  await breakThese(await established(pid, null));
}

async function breakThese(connections: Connection[]): Promise<void> {
  for (const { local, peer } of connections)
    await runTool('ss', ['-K', '-Htn', 'state', 'established', 'src', local, 'dst', peer], { deadlineMs });
}

/** A server's kernel acknowledges what it gets well before, and no keepalive is sent sooner (tcp(7): tcp_keepalive_time). */
const acknowledgedMs = 1_000;

/**
 * Whether a process has asked a server something on its connection that is not answered, and has heard nothing there for so long.
 * After an answer to all nothing is sent; after a request the server's kernel, if nobody else there, acknowledges it (tcp_info(7):
 * tcpi_last_data_sent, tcpi_last_data_recv, tcpi_last_ack_recv). A later acknowledgement is one of a keepalive. It is not seen of a request
 * that was sent before the last answer, or sent and acknowledged within one tick of the clock, of 1 to 10 ms, after it; nor if the process
 * has several connections to the server, each of which may be for something else.
 */
export async function waitsForServer(
  pid: number,
  address: { host: string; port: number },
  forMs: number,
): Promise<boolean> {
  const { stdout } = await runTool('ss', ['-HtnpiO', 'state', 'established', 'dst', serverText(address)], {
    deadlineMs,
  });
  const [line, another] = stdout.split('\n').filter((text) => connectionOf(text, pid) !== null);
  if (line === undefined || another !== undefined) return false;
  // An age of 0 is left out.
  const ageMs = (of: string): number => Number(new RegExp(` ${of}:(\\d+)`).exec(line)?.[1] ?? 0);
  const [sentMs, heardMs, acknowledgedAgoMs] = [ageMs('lastsnd'), ageMs('lastrcv'), ageMs('lastack')];
  if (heardMs < forMs) return false;
  return sentMs < heardMs || (acknowledgedAgoMs < heardMs && sentMs - acknowledgedAgoMs < acknowledgedMs);
}

function serverText({ host, port }: { host: string; port: number }): string {
  return `${host.includes(':') ? `[${host}]` : host}:${port}`;
}

/** They have been closed on this side, and what was not sent yet still is (RFC 9293, 3.6). */
const closing = ['fin-wait-1', 'closing', 'last-ack'].flatMap((state) => ['state', state]);

/**
 * Has the kernel forget what it would still send to a server for connections that are closed already: for minutes it tries to, and a
 * write of former days would reach the server after those of a new connection.
 * @throws CdpError `old-connection` if it can't
 */
export async function forgetUnsent(address: { host: string; port: number }): Promise<void> {
  const server = serverText(address);
  const options = [...closing, 'dst', server];
  // Others are closed all the time, by anybody; nothing of ours is under way now.
  const before = await locals(['-HtnO', ...options]);
  if (before.length === 0) return;
  const forgotten = await locals(['-K', '-HtnO', ...options]);
  const left = await locals(['-HtnO', ...options]);
  // A kernel may show one without anything to send for ever (Linux before 6.11, net/ipv4/tcp.c: tcp_abort).
  if (left.every((local) => forgotten.includes(local) || !before.includes(local))) return;
  throw new CdpError({
    code: 'old-connection',
    message: `a connection to ${server} that was closed still has something to send, which would be written late`,
    hint: 'it ends by itself within minutes; a kernel with CONFIG_INET_DIAG_DESTROY can end it at once',
  });
}

async function locals(args: string[]): Promise<string[]> {
  const { status, stdout, stderr } = await runTool('ss', args, { deadlineMs });
  if (status !== 0) throw new CdpError({ code: 'old-connection', message: `ss could not be asked: ${stderr.trim()}` });
  return stdout.split('\n').flatMap((line) => line.trim().split(/\s+/)[3] ?? []);
}

async function established(pid: number, server: string | null): Promise<Connection[]> {
  const where = server === null ? [] : ['dst', server];
  const { stdout } = await runTool('ss', ['-HtnpO', 'state', 'established', ...where], { deadlineMs });
  return stdout.split('\n').flatMap((line) => connectionOf(line, pid) ?? []);
}

function connectionOf(line: string, pid: number): Connection | null {
  const [, , local, peer, users] = line.trim().split(/\s+/);
  if (local === undefined || peer === undefined || users?.includes(`,pid=${pid},`) !== true) return null;
  return { local, peer };
}
