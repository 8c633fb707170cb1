import { carryOut } from '../carry-out.ts';
import { defineCommand, given } from '../command.ts';

export const resync = defineCommand({
  name: 'resync',
  summary: 'bring a stale copy up to date from the current one',
  domain: 'required',
  options: {
    disk: { value: 'DEV', summary: 'this disk only' },
    full: { summary: 'copy everything, not only what is known to have changed' },
    noWait: { summary: 'return as soon as the agent has accepted' },
  },
  run: (context, domain, { disk, full, noWait }) =>
    carryOut(context, domain, 'resync', given({ disk, full }), {
      noWait,
      disk,
      reached: ({ state }) => state === 'protected',
    }),
});
