import assert from 'node:assert/strict';
import { readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { dashed } from '../../src/cli/command.ts';
import { commands } from '../../src/cli/commands.ts';
import { consoleBlocks } from './console.ts';

const root = join(import.meta.dirname, '../..');
const { scripts } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as { scripts: object };
const pages = ['README.md', 'CONTRIBUTING.md', ...readdirSync(join(root, 'docs')).map((name) => `docs/${name}`)].filter(
  (name) => name.endsWith('.md'),
);

/** What stands in backticks, and the lines of blocks, that begin with the command. */
function commandLines(text: string): string[][] {
  const blocks = [...text.matchAll(/^```\w*\n([^]*?)^```/gm)].flatMap(([, block = '']) => block.split('\n'));
  const inline = [...text.replaceAll(/^```[^]*?^```/gm, '').matchAll(/`([^`]+)`/g)].map(([, code = '']) => code);
  return [...blocks, ...inline].flatMap((line) => {
    const words =
      line
        .trim()
        .replace(/^# /, '')
        .replace(/^node dist\/virt-cdp\.js /, 'virt-cdp ')
        .split(/[;|]/)[0]
        ?.trim()
        .split(/\s+/) ?? [];
    return words[0] === 'virt-cdp' && words.length > 1 ? [words.slice(1)] : [];
  });
}

/** Who types the lines of a page's console blocks. */
const typedBy: Record<string, string[]> = {
  'README.md': ['integration/documents.test.ts'],
  'docs/getting-started.md': ['integration/documents.test.ts', 'packages/packages.test.ts'],
  'docs/runbook.md': ['integration/documents.test.ts'],
  'docs/events.md': ['integration/documents.test.ts'],
  'docs/monitoring.md': ['integration/documents.test.ts', 'packages/packages.test.ts'],
  'docs/embodiments.md': ['integration/documents.test.ts', 'integration/network-storage.test.ts'],
};

describe('the command lines in the documents', () => {
  const globals = ['--json', '--help', '--socket', '--version'];

  for (const page of pages) {
    it(`are such as there are, in ${page}`, () => {
      for (const words of commandLines(readFileSync(join(root, page), 'utf8'))) {
        const [name = '', ...args] = words;
        if (globals.includes(name) || /^(COMMAND|ACTION|help)$/.test(name)) continue;
        const command = commands.find((one) => one.name === name);
        assert.ok(command !== undefined, `there is no virt-cdp ${name}`);
        const named = Object.keys(command.options).filter((name) => !command.options[name]?.positional);
        const known = [...named.map(dashed), ...globals];
        for (const option of args.flatMap((arg) => /--[a-z-]+/.exec(arg)?.[0] ?? []))
          assert.ok(known.includes(option), `virt-cdp ${name} has no ${option}`);
      }
    });
  }

  for (const page of pages) {
    const text = readFileSync(join(root, page), 'utf8');
    const lines = consoleBlocks(text).flatMap(({ commands: shown }) => shown.map(({ command }) => command));
    const [ours, others] = [
      lines.filter((line) => line.startsWith('npm ')),
      lines.filter((line) => !line.startsWith('npm ')),
    ];

    if (others.length > 0)
      it(`are typed by a test, in ${page}`, () => {
        const tests = typedBy[page] ?? [];
        assert.ok(tests.length > 0, others.join('\n'));
        for (const test of tests) assert.ok(readFileSync(join(root, 'test', test), 'utf8').includes(page), test);
      });

    it(`stand in console blocks, and are scripts of this project where they are npm's, in ${page}`, () => {
      for (const [, block = ''] of text.matchAll(/^```\n([^]*?)^```/gm))
        assert.doesNotMatch(
          block,
          /^(# )?(virt-cdp|virsh|npm|nbdkit|apt|curl|journalctl|rbd|truncate|mkdir|systemctl) /m,
        );
      for (const line of ours) {
        const [, script = ''] = /^npm (?:run )?([a-z:]+)/.exec(line) ?? [];
        assert.ok(script === 'ci' || script in scripts, line);
      }
    });
  }

  it('are found', () => assert.ok(commandLines(readFileSync(join(root, 'docs/runbook.md'), 'utf8')).length > 10));
});
