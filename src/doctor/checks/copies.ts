import { imageName } from '../../storage/image.ts';
import { probeImage, type ProbeAnswer } from '../../storage/tools.ts';
import type { Side } from '../../protection/model.ts';
import type { Check } from '../check.ts';
import { ok, trouble } from '../finding.ts';
import { disksOf } from '../host-view.ts';

interface Copy {
  domain: string;
  dev: string;
  side: Side;
  name: string;
  current: boolean;
  answer: ProbeAnswer;
}

/** Whether each copy of each protected disk can be read, by a process of its own. */
export const copiesCheck: Check<Copy[]> = {
  name: 'copies',
  gather: async (host) =>
    Promise.all(
      disksOf(host).flatMap(({ domain, record }) =>
        (['primary', 'mirror'] as const).map(async (side) => ({
          domain,
          dev: record.dev,
          side,
          name: imageName(record[side].image),
          current: record[side].current,
          answer: await probeImage(record[side].image, {
            deadlineMs: host.config.mirror.timeoutMs,
            opener: host.opener,
          }),
        })),
      ),
    ),
  examine: (copies) => {
    const remarks = copies.flatMap(({ domain, dev, side, name, current, answer }) =>
      answer.ok
        ? []
        : trouble(
            current ? 'error' : 'warning',
            `the ${side} of ${domain} ${dev}, '${name}', can't be read: ${answer.reason}`,
            current ? 'a copy that has every write does not answer' : 'it can not be brought up to date',
            `see to that storage, and the way to it; then: virt-cdp status ${domain}`,
          ),
    );
    return remarks.length > 0 ? remarks : [ok(`${copies.length} copies answer`)];
  },
};
