import type { DiskStatus } from '../protection/model.ts';

/** A disk that is not on its way and says why is given this long to change its mind. */
const settledMs = 3000;
/** ... and one that does not say why, or whose job does not move, this long. */
const silentMs = 30_000;

/** Tells, from one look after the other, which disks get nowhere any more. */
export class Stillness {
  private readonly seen = new Map<string, { text: string; sinceMs: number }>();

  /** Nothing moves a broken or stopped disk, and a waiting one that has told its reason moves by other hands. */
  isStuck(disk: DiskStatus, nowMs: number): boolean {
    const stillMs = this.ofMs(disk, nowMs);
    switch (disk.state) {
      case 'broken':
      case 'stopped':
        return true;
      case 'syncing':
      case 'rebuilding':
        return disk.job !== null && stillMs > silentMs;
      case 'protected':
      case 'failed-over':
      case 'exposed':
      case 'held':
      case 'waiting':
        return stillMs > (disk.job === null && disk.reason !== null ? settledMs : silentMs);
    }
  }

  /** For how long a disk has shown the same: while it has a job, only what the job has done counts. */
  private ofMs({ dev, state, reason, runningOn, job }: DiskStatus, nowMs: number): number {
    const text = JSON.stringify(job === null ? [state, reason, runningOn] : [job.kind, job.done]);
    const before = this.seen.get(dev);
    if (before?.text === text) return nowMs - before.sinceMs;
    this.seen.set(dev, { text, sinceMs: nowMs });
    return 0;
  }
}
