import type { DiskStatus, JobStatus } from '../protection/model.ts';
import { formatBytes, formatDuration, formatShare } from './format.ts';
import type { Output } from './output.ts';
import { styledState } from './status-text.ts';

const barWidth = 20;
/** The rate is that of the last seconds: storage does not run evenly. */
const rateWindowMs = 5000;
/** Looks that are closer than this say nothing about the rate. */
const rateSpanMs = 1000;

interface Sample {
  timeMs: number;
  kind: JobStatus['kind'];
  done: number;
}

/**
 * Shows how disks get on: on a terminal one line that is written again and again, elsewhere a line for each change of
 * state and each tenth of a job.
 */
export class Progress {
  private readonly out: Output;
  private readonly samples = new Map<string, Sample[]>();
  private readonly told = new Map<string, string>();
  private lineOpen = false;

  constructor(out: Output) {
    this.out = out;
  }

  show(disks: readonly DiskStatus[], nowMs: number): void {
    if (this.out.json) return;
    // A job that does not know yet how much there is to do has nothing to show.
    const shown = disks.filter(({ job }) => job === null || job.total > 0);
    const texts = shown.map((disk) => ({ disk, text: `${disk.dev}  ${this.diskText(disk, nowMs)}` }));
    for (const { disk, text } of texts) {
      const tenth = disk.job ? Math.floor((disk.job.done / disk.job.total) * 10) : '';
      const key = `${disk.state} ${disk.job?.kind ?? ''} ${this.out.tty ? '' : tenth}`;
      if (this.told.get(disk.dev) !== key && !(this.out.tty && disk.job !== null)) this.line(text);
      this.told.set(disk.dev, key);
    }
    const working = texts.find(({ disk }) => disk.job !== null);
    if (this.out.tty && working) this.overwrite(working.text);
  }

  /** Ends the line that was being overwritten, if any. */
  close(): void {
    if (this.lineOpen) this.out.raw('\n');
    this.lineOpen = false;
  }

  private line(text: string): void {
    this.close();
    this.out.line(text);
  }

  private overwrite(text: string): void {
    this.out.raw(`\r\u001b[K${text.slice(0, Math.max(1, this.out.columns - 1))}`);
    this.lineOpen = true;
  }

  private diskText(disk: DiskStatus, nowMs: number): string {
    if (disk.job === null) {
      this.samples.delete(disk.dev);
      return disk.reason === null
        ? styledState(disk.state, this.out)
        : `${styledState(disk.state, this.out)}: ${disk.reason}`;
    }
    return jobText(disk.job, this.rate(disk.dev, disk.job, nowMs));
  }

  /** Bytes a second, or null while there is too little to tell. */
  private rate(dev: string, { kind, done }: JobStatus, nowMs: number): number | null {
    const all = [...(this.samples.get(dev) ?? []), { timeMs: nowMs, kind, done }];
    const recent = all.filter(
      (sample) => sample.kind === kind && sample.done <= done && nowMs - sample.timeMs <= rateWindowMs,
    );
    this.samples.set(dev, recent);
    const first = recent[0];
    if (first === undefined || nowMs - first.timeMs < rateSpanMs) return null;
    return ((done - first.done) / (nowMs - first.timeMs)) * 1000;
  }
}

/** `full-sync  [#####...............]  25%  0.7 GiB of 2.7 GiB  110 MiB/s  ~19 s left` */
export function jobText(job: JobStatus, bytesPerS: number | null): string {
  const filled = job.total > 0 ? Math.min(barWidth, Math.floor((job.done / job.total) * barWidth)) : 0;
  const bar = `[${'#'.repeat(filled)}${'.'.repeat(barWidth - filled)}]`;
  const amount = `${formatBytes(job.done)} of ${formatBytes(job.total)}`;
  const parts = [job.kind, bar, formatShare(job.done, job.total).padStart(4), amount];
  if (bytesPerS !== null) parts.push(`${formatBytes(bytesPerS)}/s`);
  if (bytesPerS !== null && bytesPerS > 0) {
    parts.push(`~${formatDuration(((job.total - job.done) / bytesPerS) * 1000)} left`);
  }
  return parts.join('  ');
}
