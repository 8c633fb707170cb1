import type { Image } from '../domain/image.ts';
import { imageOptions, type ToolOptions } from './blockdev.ts';
import type { Access } from './kind.ts';
import type { ImageOpener, Prepared } from './opener.ts';
import { runTool, type ToolOutcome } from './run-tool.ts';

/** qemu-img and qemu-io on one image, with what they need to open it. Each call has a deadline in milliseconds. */
export class ImageTool {
  readonly image: Image;
  readonly #prepared: Prepared;
  readonly #opener: ImageOpener;

  private constructor(image: Image, prepared: Prepared, opener: ImageOpener) {
    this.image = image;
    this.#prepared = prepared;
    this.#opener = opener;
  }

  /** @throws CdpError as ImageOpener.prepare. */
  static async for(image: Image, opener: ImageOpener): Promise<ImageTool> {
    return new ImageTool(image, await opener.prepare(image, 'virt-cdp'), opener);
  }

  get access(): Access {
    return this.#prepared.access;
  }

  /** The image as a json: filename. */
  filename(options: ToolOptions = {}): string {
    return imageOptions(this.image, this.access, options);
  }

  qemuImg(command: string, args: string[], deadlineMs: number): Promise<ToolOutcome> {
    return this.#run('qemu-img', [command], args, deadlineMs);
  }

  qemuIo(args: string[], deadlineMs: number): Promise<ToolOutcome> {
    return this.#run('qemu-io', [], args, deadlineMs);
  }

  #run(program: string, command: string[], args: string[], deadlineMs: number): Promise<ToolOutcome> {
    const { certificates } = this.#prepared;
    const objects = certificates === null ? [] : ['--object', JSON.stringify(certificates)];
    const secrets = this.#opener.toolSecrets(this.#prepared.secrets);
    if (secrets === null) return runTool(program, [...command, ...objects, ...args], { deadlineMs });
    return runTool(program, [...command, ...objects, ...secrets.args, ...args], { deadlineMs, thirdFd: secrets.fd });
  }
}
