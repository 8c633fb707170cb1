import { styleText } from 'node:util';

type Style = Parameters<typeof styleText>[0];

const redrawMs = 100;
const reportMs = 1000;
const usualColumns = 80;
const margin = ' '.repeat(11);

/**
 * The timeline. On a terminal its last lines are alive: they are drawn again ten times a second, below whatever is told.
 * Elsewhere the first of them is told once a second.
 */
export class Screen {
  readonly #out: NodeJS.WriteStream;
  readonly #startedAtMs = Date.now();
  readonly #timer: NodeJS.Timeout;
  readonly #coloured: boolean;
  #alive: () => string[] = () => [];
  #drawn = 0;

  constructor(out: NodeJS.WriteStream) {
    this.#out = out;
    this.#coloured = out.isTTY && !process.env['NO_COLOR'];
    this.#timer = setInterval(() => this.#tick(), out.isTTY ? redrawMs : reportMs);
  }

  get tty(): boolean {
    return this.#out.isTTY;
  }

  /** What is alive from now on, the most important first. */
  showLive(lines: () => string[]): void {
    this.#alive = lines;
  }

  /** Something that happens now, or happened at `time` (ms since 1970). */
  tell(text: string, time = Date.now()): void {
    const seconds = Math.max(0, time - this.#startedAtMs) / 1000;
    this.#write(`${this.style('dim', `${seconds.toFixed(1).padStart(7)} s`)}  ${text}`);
  }

  /** What belongs to the line before. */
  detail(text: string): void {
    this.#write(text === '' ? '' : `${margin}${text}`);
  }

  heading(...lines: string[]): void {
    this.#write('');
    for (const line of lines) this.#write(this.style('bold', line));
  }

  style(style: Style, text: string): string {
    return this.#coloured ? styleText(style, text, { validateStream: false }) : text;
  }

  /** The terminal is as it was. */
  close(): void {
    clearInterval(this.#timer);
    this.#alive = () => [];
    this.#erase();
  }

  #tick(): void {
    if (this.tty) {
      this.#erase();
      this.#draw();
    } else {
      for (const line of this.#alive().slice(0, 1)) this.tell(line);
    }
  }

  #write(line: string): void {
    this.#erase();
    this.#out.write(`${line}\n`);
    this.#draw();
  }

  #erase(): void {
    if (this.#drawn > 0) this.#out.write(`\u001b[${this.#drawn}A\r\u001b[J`);
    this.#drawn = 0;
  }

  #draw(): void {
    if (!this.tty) return;
    // A line that is wrapped by the terminal could not be erased.
    const columns = this.#out.columns || usualColumns;
    const lines = this.#alive().map((line) => this.style('green', `${margin}${line}`.slice(0, columns - 1)));
    if (lines.length > 0) this.#out.write(`\n${lines.join('\n')}\n`);
    this.#drawn = lines.length === 0 ? 0 : lines.length + 1;
  }
}
