/** A command of a page's ```console block, and what the page shows it to say. */
export interface Shown {
  command: string;
  /** Lines of its output, in their order, not all of them; `...` in a line is any text. */
  output: string[];
}

export interface ConsoleBlock {
  /** The heading that it stands under. */
  heading: string;
  commands: Shown[];
}

/**
 * The ```console blocks of a Markdown page, in their order. A line that begins with `# ` is typed by root; one that begins with `> ` goes on
 * with it. What stands behind two spaces and `# ` is for the reader.
 */
export function consoleBlocks(page: string): ConsoleBlock[] {
  const blocks: ConsoleBlock[] = [];
  let heading = '';
  let block: ConsoleBlock | null = null;
  for (const line of page.split('\n')) {
    if (block !== null) {
      if (line === '```') block = null;
      else if (line.startsWith('# ')) block.commands.push({ command: withoutRemark(line.slice(2)), output: [] });
      else if (line.startsWith('> ')) block.commands.at(-1)!.command += `\n${line.slice(2)}`;
      else block.commands.at(-1)?.output.push(line);
    } else if (line === '```console') blocks.push((block = { heading, commands: [] }));
    else heading = /^#+ (.*)/.exec(line)?.[1] ?? heading;
  }
  return blocks;
}

const withoutRemark = (line: string): string => line.replace(/ {2,}# .*$/, '');

/** The first line that the page shows and that is not among the rest of the output; null if all are there, in their order. */
export function notSaid(shown: readonly string[], output: string): string | null {
  const said = output.split('\n').map((line) => line.trim().replaceAll(/\s+/g, ' '));
  for (const line of shown) {
    const pattern = new RegExp(`^${line.trim().split('...').map(escape).join('.*')}$`);
    const at = said.findIndex((one) => pattern.test(one));
    if (at < 0) return line;
    said.splice(0, at + 1);
  }
  return null;
}

const escape = (text: string): string => text.replaceAll(/\s+/g, ' ').replaceAll(/[\\^$.*+?()[\]{}|]/g, '\\$&');
