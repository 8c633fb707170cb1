import { execFile } from 'node:child_process';
import { promisify } from 'node:util';

const run = promisify(execFile);

/**
 * Tells systemd that the agent is ready, and then, until the returned function is called, that it lives: by sd_notify(3), through
 * systemd-notify(1), since Node has no unix datagram sockets. Does nothing where no unit asks for it.
 * @throws Error if systemd-notify fails at READY.
 */
export async function tellServiceManager(
  env: NodeJS.ProcessEnv,
  failed: (error: unknown) => void,
): Promise<() => void> {
  if (env['NOTIFY_SOCKET'] === undefined) return () => undefined;
  await run('systemd-notify', ['--ready']);
  const watchdogUsec = Number(env['WATCHDOG_USEC'] ?? 0);
  if (watchdogUsec === 0) return () => undefined;
  // Thrice in the time that systemd allows: one message may come late.
  const timer = setInterval(() => void run('systemd-notify', ['WATCHDOG=1']).catch(failed), watchdogUsec / 3000);
  return () => clearInterval(timer);
}
