import { must, run } from './run.ts';

/** A file as a block device of the host, with the sector size that is wanted. */
export class LoopDevice {
  readonly path: string;

  private constructor(path: string) {
    this.path = path;
  }

  static async attach(file: string, sectorBytes: 512 | 4096): Promise<LoopDevice> {
    const path = await must('losetup', '--find', '--show', '--sector-size', String(sectorBytes), file);
    return new LoopDevice(path.trim());
  }

  /** One that is in use goes when its last user does. */
  async detach(): Promise<void> {
    await run('losetup', ['--detach', this.path]);
  }
}
