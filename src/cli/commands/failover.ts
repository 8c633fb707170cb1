import { carryOut } from '../carry-out.ts';
import { defineCommand, given } from '../command.ts';
import { tellLoss } from '../data-loss.ts';

export const failover = defineCommand({
  name: 'failover',
  summary: 'move the running domain onto the mirror',
  domain: 'required',
  options: {
    disk: { value: 'DEV', summary: 'this disk only' },
    acceptDataLoss: { summary: 'also onto a stale mirror: what was written since is lost' },
    noWait: { summary: 'return as soon as the agent has accepted' },
  },
  async run(context, domain, { disk, acceptDataLoss, noWait }) {
    if (acceptDataLoss) {
      await tellLoss(context, domain, ({ dev, primary }, { running }) =>
        running && primary.current && (disk === undefined || disk === dev) ? ['mirror'] : [],
      );
    }
    return carryOut(context, domain, 'failover', given({ disk, acceptDataLoss }), {
      noWait,
      disk,
      reached: ({ runningOn }) => runningOn === 'mirror',
    });
  },
});
