import { runTool } from '../../storage/run-tool.ts';
import type { Check } from '../check.ts';
import { ok, trouble } from '../finding.ts';

/** What `timedatectl show --property=NTPSynchronized --value` says; null if it says neither yes nor no. */
interface Facts {
  synchronized: boolean | null;
}

const deadlineMs = 5_000;

/** Whether the times that are told of copies can be believed. */
export const clockCheck: Check<Facts> = {
  name: 'clock',
  async gather() {
    const { stdout } = await runTool('timedatectl', ['show', '--property=NTPSynchronized', '--value'], { deadlineMs });
    return { synchronized: { yes: true, no: false }[stdout.trim()] ?? null };
  },
  examine: ({ synchronized }) => {
    if (synchronized === true) return [ok('the clock is synchronized')];
    const why = 'a stale copy is told to be whole as of a time of this clock';
    return synchronized === false
      ? [trouble('warning', 'the clock is not synchronized', why, 'timedatectl set-ntp true')]
      : [trouble('unknown', 'whether the clock is synchronized is not known', why, 'timedatectl status')];
  },
};
