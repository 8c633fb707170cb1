import { carryOut } from '../carry-out.ts';
import { defineCommand, given } from '../command.ts';
import { tellLoss } from '../data-loss.ts';

export const start = defineCommand({
  name: 'start',
  summary: 'start a domain from its current copy, even if the primary is gone',
  domain: 'required',
  options: { acceptDataLoss: { summary: 'also from a stale copy: what was written since is lost' } },
  async run(context, domain, { acceptDataLoss }) {
    if (acceptDataLoss) {
      await tellLoss(context, domain, (_disk, { running }) => (running ? [] : ['primary', 'mirror']));
    }
    return carryOut(context, domain, 'start', given({ acceptDataLoss }));
  },
});
