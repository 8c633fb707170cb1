import type { Image } from '../domain/image.ts';
import { imageName } from '../storage/image.ts';
import { nbdAnswer } from '../storage/nbd-answer.ts';
import type { ImageOpener } from '../storage/opener.ts';
import { runTool } from '../storage/run-tool.ts';
import { probeImage } from '../storage/tools.ts';

/**
 * Asks images for any answer at all, by a connection or process of its own.
 *
 * INVARIANTS
 * - Of one image there is never more than one question: one that does not end, because the kernel does not let go of its process, is
 *   not asked again.
 * - No question waits on a thread of this process.
 */
export class Prober {
  readonly #deadlineMs: () => number;
  readonly #opener: ImageOpener;
  /** By image; kept for as long as the question lasts. */
  readonly #questions = new Map<string, Promise<boolean>>();

  constructor(deadlineMs: () => number, opener: ImageOpener) {
    this.#deadlineMs = deadlineMs;
    this.#opener = opener;
  }

  /** Whether it says anything by the deadline, be it an error that QEMU would take for one. */
  ask(image: Image): Promise<boolean> {
    const name = imageName(image);
    const asked = this.#questions.get(name);
    if (asked !== undefined) return asked;
    const question = this.#ask(image, () => this.#questions.delete(name));
    this.#questions.set(name, question);
    return question;
  }

  async #ask(image: Image, ended: () => void): Promise<boolean> {
    const deadlineMs = this.#deadlineMs();
    const { source } = image;
    if (source.kind === 'nbd') {
      const signal = AbortSignal.timeout(deadlineMs);
      await nbdAnswer(source, { deadlineMs, signal }).finally(ended);
      return !signal.aborted;
    }
    if ('path' in source) {
      const outcome = await runTool('dd', [`if=${source.path}`, ...firstBlock], { deadlineMs });
      void outcome.ended.then(ended);
      return !outcome.deadlinePassed;
    }
    const answer = await probeImage(image, { deadlineMs, opener: this.#opener }).finally(ended);
    // An error of a target that is gone is none to QEMU's own initiator: it waits, as for one that is silent.
    return answer.ok || (!answer.late && source.kind !== 'iscsi');
  }
}

/** Past the page cache; a file system that refuses that has answered, too. */
const firstBlock = ['of=/dev/null', 'bs=4096', 'count=1', 'iflag=direct', 'status=none'];
