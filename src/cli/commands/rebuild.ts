import { carryOut } from '../carry-out.ts';
import { defineCommand, given } from '../command.ts';
import { onlyOneOf, readXml } from '../xml-file.ts';

export const rebuild = defineCommand({
  name: 'rebuild',
  summary: 'make a new primary from the mirror, and move back onto it',
  domain: 'required',
  options: {
    disk: { value: 'DEV', summary: 'this disk only' },
    to: { value: 'original|PATH|URI', summary: 'where; `original`: the old primary is back, copy only what changed' },
    toXml: { value: 'FILE', summary: 'where, as a libvirt <disk> element' },
    format: { value: 'FORMAT', summary: "the new primary's format", choices: ['raw', 'qcow2'] },
    noWait: { summary: 'return as soon as the agent has accepted' },
  },
  async run(context, domain, { disk, to, toXml, format, noWait }) {
    onlyOneOf({ '--to': to, '--to-xml': toXml });
    const args = given({ disk, to, toXml: await readXml(toXml), format });
    return carryOut(context, domain, 'rebuild', args, { noWait, disk, reached: ({ state }) => state === 'protected' });
  },
});
