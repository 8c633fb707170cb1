import { carryOut } from '../carry-out.ts';
import { defineCommand } from '../command.ts';

export const release = defineCommand({
  name: 'release',
  summary: 'end a hold: copy what changed and mirror again',
  domain: 'required',
  options: { noWait: { summary: 'return as soon as the agent has accepted' } },
  run: (context, domain, { noWait }) =>
    carryOut(
      context,
      domain,
      'release',
      {},
      {
        noWait,
        disk: undefined,
        reached: ({ state }) => state === 'protected',
      },
    ),
});
