import { carryOut } from '../carry-out.ts';
import { defineCommand, given, type Context } from '../command.ts';
import type { ActionArguments } from '../../control/api.ts';
import type { ExitCode } from '../exit.ts';
import { onlyOneOf, readXml } from '../xml-file.ts';
import { CdpError, RefusedError, UsageError } from '../../errors.ts';

export const protect = defineCommand({
  name: 'protect',
  summary: 'keep a second, current copy of a disk',
  description:
    'Declares the protection and, if the domain runs, begins it; waits until the disk is protected. A domain that runs without ' +
    "error_policy='stop' on the disk is protected with less of a guarantee (relaxed) until its next start (virsh shutdown, virsh start); " +
    'it gets the policy at once with --stop-policy-by save-restore, also when it was declared before (without --mirror then).',
  domain: 'required',
  options: {
    disk: { value: 'DEV', summary: "the disk's target, e.g. vda", required: true },
    mirror: {
      value: 'URI',
      summary:
        'where the second copy lives: a path, /dev/..., nbd://..., nbds://... (TLS), iscsi://... or rbd:POOL/IMAGE',
    },
    mirrorXml: { value: 'FILE', summary: "the same as a libvirt <disk> element, for what a URI can't say" },
    policy: {
      value: 'POLICY',
      summary: 'what goes first when a copy fails: the guest, or the second copy',
      choices: ['available', 'strict'],
    },
    create: { summary: "create the mirror with the disk's size" },
    overwriteMirror: { summary: 'the mirror holds data that may be overwritten' },
    unencryptedMirror: { summary: 'the mirror of an encrypted disk may be in clear' },
    rebuildTo: { value: 'TEMPLATE', summary: 'where later rebuilds put a new primary: {domain}, {dev}, {n}' },
    stopPolicyBy: {
      value: 'WAY',
      summary: 'a running guest that lacks it gets it by a pause of seconds, told and on a terminal asked for first',
      choices: ['save-restore'],
    },
    noWait: { summary: 'return as soon as the agent has accepted' },
  },
  async run(context, domain, options) {
    const { disk, mirror, mirrorXml, policy, create, overwriteMirror, unencryptedMirror, ...rest } = options;
    const { rebuildTo, stopPolicyBy, noWait } = rest;
    onlyOneOf({ '--mirror': mirror, '--mirror-xml': mirrorXml });
    if (mirror === undefined && mirrorXml === undefined && stopPolicyBy === undefined) {
      throw new UsageError({
        code: 'usage',
        message: `cannot protect ${domain} ${disk}: no mirror is given`,
        hint: 'say where the second copy shall live: --mirror URI, or --mirror-xml FILE',
      });
    }
    const xml = await readXml(mirrorXml);
    const args = {
      disk,
      ...given({ mirror, mirrorXml: xml, policy, create, overwriteMirror, unencryptedMirror, rebuildTo, stopPolicyBy }),
    };
    const begin = (more: Partial<ActionArguments['protect']> = {}): Promise<ExitCode> =>
      carryOut(
        context,
        domain,
        'protect',
        { ...args, ...more },
        {
          noWait,
          disk,
          reached: ({ state }) => state === 'protected',
        },
      );
    try {
      return await begin();
    } catch (error) {
      if (!(error instanceof RefusedError && error.code === 'pause-not-agreed')) throw error;
      await agreeOn(context, domain, error.message);
      return begin({ pauseAgreed: true });
    }
  },
});

/** Who typed the option has agreed to a pause; at a terminal they are asked again, now that it is known how long it will be. */
async function agreeOn({ out, ask }: Context, domain: string, pause: string): Promise<void> {
  out.warn(pause);
  if (ask === null || (await ask('Save and restore it now?'))) return;
  throw new CdpError({
    code: 'pause-not-agreed',
    message: `nothing was changed: ${domain} runs on as it is`,
    hint: 'without the pause, it can be protected from its next virsh shutdown and virsh start on',
  });
}
