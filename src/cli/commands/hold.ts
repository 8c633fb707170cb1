import { carryOut } from '../carry-out.ts';
import { defineCommand } from '../command.ts';

export const hold = defineCommand({
  name: 'hold',
  summary: 'stop mirroring for a while, with what changes noted; the guest runs on',
  description: 'For virsh blockcommit, blockcopy and blockresize; virt-cdp release ends it.',
  domain: 'required',
  options: {},
  run: (context, domain) => carryOut(context, domain, 'hold', {}),
});
