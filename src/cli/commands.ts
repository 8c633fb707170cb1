import type { Command } from './command.ts';
import { doctor } from './commands/doctor.ts';
import { events } from './commands/events.ts';
import { failover } from './commands/failover.ts';
import { hold } from './commands/hold.ts';
import { installHook } from './commands/install-hook.ts';
import { list } from './commands/list.ts';
import { migrate } from './commands/migrate.ts';
import { protect } from './commands/protect.ts';
import { rebuild } from './commands/rebuild.ts';
import { release } from './commands/release.ts';
import { resync } from './commands/resync.ts';
import { start } from './commands/start.ts';
import { status } from './commands/status.ts';
import { unprotect } from './commands/unprotect.ts';
import { verify } from './commands/verify.ts';

/** Every command, in the order in which --help lists them. */
export const commands: readonly Command[] = [
  list,
  status,
  protect,
  unprotect,
  hold,
  release,
  failover,
  rebuild,
  resync,
  migrate,
  verify,
  start,
  events,
  installHook,
  doctor,
];
