import type { CopyStatus, DiskState, DiskStatus, DomainStatus } from '../protection/model.ts';
import { formatBytes, formatDuration, formatShare, formatTable, formatTime } from './format.ts';
import type { Output, Style } from './output.ts';

/** One domain for a reader who was woken by it: what is wrong first, then where everything is. */
export function statusLines(status: DomainStatus, out: Output, nowMs: number): string[] {
  const name = out.style('bold', status.domain);
  const run = status.running ? 'running' : 'not running';
  if (status.problem !== undefined)
    return [`${name}  ${styledState(status.state, out)}  (${run})`, `  why: ${status.problem}`];
  if (status.disks.length === 0) return [`${name}  not protected (${run})`];
  const promise = status.guarantee === 'strict-ack' ? '' : `, guarantee ${status.guarantee}`;
  const head = `${name}  ${styledState(status.state, out)}  (${run}, policy ${status.policy}${promise})`;
  return [head, ...status.disks.flatMap((disk) => diskLines(status, disk, out, nowMs).map((line) => `  ${line}`))];
}

/** The state in the colour of its urgency. */
export function styledState(state: DiskState, out: Output): string {
  return out.style(stateStyles[state], state);
}

const stateStyles: Record<DiskState, Style> = {
  stopped: 'dim',
  protected: 'green',
  rebuilding: 'yellow',
  'failed-over': 'yellow',
  syncing: 'yellow',
  exposed: 'red',
  held: 'yellow',
  waiting: 'yellow',
  broken: 'red',
};

function diskLines({ running }: DomainStatus, disk: DiskStatus, out: Output, nowMs: number): string[] {
  const lasting = formatDuration(nowMs - Date.parse(disk.since));
  const lines = [`${disk.dev}  ${styledState(disk.state, out)} since ${formatTime(disk.since)}, for ${lasting}`];
  if (disk.reason !== null) lines.push(`     why: ${disk.reason}`);
  lines.push(`     ${runText(disk, running)}`);
  const copies = [copyCells('primary', disk.primary), copyCells('mirror', disk.mirror)];
  lines.push(...formatTable(copies).map((line) => `     ${line}`));
  if (disk.exposedSince !== null) lines.push(`     ${exposedText(disk, disk.exposedSince, nowMs)}`);
  if (disk.job !== null && disk.job.total > 0) {
    const { kind, done, total } = disk.job;
    lines.push(`     ${kind}: ${formatShare(done, total)}, ${formatBytes(done)} of ${formatBytes(total)}`);
  }
  return lines;
}

function runText(disk: DiskStatus, running: boolean): string {
  switch (disk.runningOn) {
    case 'both':
      return 'the guest runs on both copies';
    case 'primary':
    case 'mirror':
      return disk.state === 'broken'
        ? `the guest is paused on the ${disk.runningOn}`
        : `the guest runs on the ${disk.runningOn} alone`;
    case 'none':
      return running && disk.state !== 'stopped' ? 'the guest is paused' : 'the guest does not run';
  }
}

function copyCells(side: string, copy: CopyStatus): string[] {
  return [side, currencyText(copy), reachabilityText(copy), copy.source];
}

/** Whether a copy holds everything, or as of when it does. */
export function currencyText(copy: CopyStatus): string {
  if (copy.current) return 'current';
  if (copy.consistentAsOf !== null) return `STALE, whole as of ${formatTime(copy.consistentAsOf)}`;
  return copy.mixture ? 'STALE, not a whole copy' : 'STALE';
}

function reachabilityText(copy: CopyStatus): string {
  if (copy.reachable === null) return 'not looked at';
  return copy.reachable ? 'reachable' : 'UNREACHABLE';
}

function exposedText(disk: DiskStatus, since: string, nowMs: number): string {
  const text = `one current copy since ${formatTime(since)}, for ${formatDuration(nowMs - Date.parse(since))}`;
  return disk.exposedBytes === null ? text : `${text}: ${formatBytes(disk.exposedBytes)} on one copy only`;
}

/** Which copies of all of a domain's disks are current: `both`, `primary`, `mirror`, `none`, or `mixed`. */
export function currentCopies(status: DomainStatus): string {
  const words = status.disks.map(({ primary, mirror }) => {
    if (primary.current) return mirror.current ? 'both' : 'primary';
    return mirror.current ? 'mirror' : 'none';
  });
  const [first = '-', ...rest] = new Set(words);
  return rest.length === 0 ? first : 'mixed';
}
