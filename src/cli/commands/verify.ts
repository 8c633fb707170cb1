import type { ActionResult } from '../../control/api.ts';
import { UsageError } from '../../errors.ts';
import type { DiskVerdict } from '../../protection/model.ts';
import { defineCommand, given } from '../command.ts';
import { exitCodes } from '../exit.ts';
import { formatBytes } from '../format.ts';
import type { Output } from '../output.ts';
import { watchWhile } from '../watch-while.ts';

export const verify = defineCommand({
  name: 'verify',
  summary: "compare a running domain's copies, at one instant, while the guest runs on",
  description:
    'The exit code is 0 if they are identical, 1 if they differ. With --repair what differs is copied from the primary, which is what ' +
    'the guest reads, onto the mirror; never the other way. What the guest overwrites meanwhile needs room in the scratch folder.',
  domain: 'required',
  options: {
    disk: { value: 'DEV', summary: 'this disk only' },
    maxBytesPerS: { value: 'BYTES', summary: 'read each copy no faster' },
    repair: { summary: 'bring the mirror up to date where it differs' },
  },
  async run(context, domain, { disk, maxBytesPerS, repair }) {
    const { client, out } = context;
    const args = given({ disk, maxBytesPerS: bytesPerS(maxBytesPerS), repair });
    const result = await watchWhile(context, domain, client.act(domain, 'verify', args));
    if (result === null) {
      out.warn(`the verify goes on in the agent; what it finds: virt-cdp events --domain ${domain}`);
      return exitCodes.interrupted;
    }
    const { verdicts = [] } = result;
    if (out.json) out.value(result);
    else tell(result, verdicts, out, repair);
    return verdicts.every(({ differingBytes, complete }) => differingBytes === 0 && complete)
      ? exitCodes.done
      : exitCodes.failed;
  },
});

function bytesPerS(text: string | undefined): number | undefined {
  if (text === undefined || /^[1-9]\d{0,14}$/.test(text)) return text === undefined ? undefined : Number(text);
  throw new UsageError({
    code: 'usage',
    message: `--max-bytes-per-s is a number of bytes, not '${text}'`,
    hint: 'for 50 MiB a second: --max-bytes-per-s 52428800',
  });
}

function tell({ status }: ActionResult, verdicts: readonly DiskVerdict[], out: Output, repair: boolean): void {
  for (const verdict of verdicts) {
    const { dev, asOf, comparedBytes, differences, differingBytes, unsettledBytes, complete } = verdict;
    const name = `${status?.domain ?? ''} ${dev}`;
    if (differences.length === 0 && complete)
      out.line(`${name}: the copies are identical as of ${asOf} (${formatBytes(comparedBytes - unsettledBytes)})`);
    if (differences.length > 0)
      out.line(`${out.style('red', `${name}: the copies differ`)} in ${formatBytes(differingBytes)}, as of ${asOf}:`);
    for (const { offset, length } of differences) out.line(`  offset ${offset}  length ${length}`);
    if (!complete)
      out.line(
        `${name}: so much differs that the rest was not compared: virt-cdp resync ${status?.domain ?? ''} --full`,
      );
    if (unsettledBytes > 0)
      out.line(`${formatBytes(unsettledBytes)} more could not be judged: the guest writes there all the time`);
    if (verdict.repairing) out.line('what differs is being copied from the primary onto the mirror');
    else if (differences.length > 0 && !repair) out.line('to bring the mirror up to date there: add --repair');
  }
}
