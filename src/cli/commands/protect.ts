import { carryOut } from '../carry-out.ts';
import { defineCommand, given } from '../command.ts';
import { onlyOneOf, readXml } from '../xml-file.ts';
import { UsageError } from '../../errors.ts';

export const protect = defineCommand({
  name: 'protect',
  summary: 'keep a second, current copy of a disk',
  description: 'Declares the protection and, if the domain runs, begins it; waits until the disk is protected.',
  domain: 'required',
  options: {
    disk: { value: 'DEV', summary: "the disk's target, e.g. vda", required: true },
    mirror: { value: 'URI', summary: 'where the second copy lives: a path, /dev/..., nbd://... or nbd+unix://...' },
    mirrorXml: { value: 'FILE', summary: "the same as a libvirt <disk> element, for what a URI can't say" },
    policy: {
      value: 'POLICY',
      summary: 'what goes first when a copy fails: the guest, or the second copy',
      choices: ['available', 'strict'],
    },
    create: { summary: "create the mirror with the disk's size" },
    overwriteMirror: { summary: 'the mirror holds data that may be overwritten' },
    rebuildTo: { value: 'TEMPLATE', summary: 'where later rebuilds put a new primary: {domain}, {dev}, {n}' },
    noWait: { summary: 'return as soon as the agent has accepted' },
  },
  async run(context, domain, options) {
    const { disk, mirror, mirrorXml, policy, create, overwriteMirror, rebuildTo, noWait } = options;
    onlyOneOf({ '--mirror': mirror, '--mirror-xml': mirrorXml });
    if (mirror === undefined && mirrorXml === undefined) {
      throw new UsageError({
        code: 'usage',
        message: `cannot protect ${domain} ${disk}: no mirror is given`,
        hint: 'say where the second copy shall live: --mirror URI, or --mirror-xml FILE',
      });
    }
    const xml = await readXml(mirrorXml);
    const args = { disk, ...given({ mirror, mirrorXml: xml, policy, create, overwriteMirror, rebuildTo }) };
    return carryOut(context, domain, 'protect', args, {
      noWait,
      disk,
      reached: ({ state }) => state === 'protected',
    });
  },
});
