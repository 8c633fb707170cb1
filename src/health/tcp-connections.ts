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
  { host, port }: { host: string; port: number },
  expected: number,
): Promise<boolean> {
  const server = `${host.includes(':') ? `[${host}]` : host}:${port}`;
  const connections = await established(pid, server);
  if (connections.length !== expected) return false;
  for (const { local, peer } of connections)
    await runTool('ss', ['-K', '-Htn', 'state', 'established', 'src', local, 'dst', peer], { deadlineMs });
  const left = (await established(pid, server)).map(({ local }) => local);
  return !connections.some(({ local }) => left.includes(local));
}

async function established(pid: number, server: string): Promise<Connection[]> {
  const { stdout } = await runTool('ss', ['-HtnpO', 'state', 'established', 'dst', server], { deadlineMs });
  return stdout.split('\n').flatMap((line) => connectionOf(line, pid) ?? []);
}

function connectionOf(line: string, pid: number): Connection | null {
  const [, , local, peer, users] = line.trim().split(/\s+/);
  if (local === undefined || peer === undefined || users?.includes(`,pid=${pid},`) !== true) return null;
  return { local, peer };
}
