import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { PassThrough } from 'node:stream';
import fc from 'fast-check';
import { dashed } from '../../src/cli/command.ts';
import { commands } from '../../src/cli/commands.ts';
import { formatTable } from '../../src/cli/format.ts';
import { complete } from '../../src/cli/shell/complete.ts';
import { quoteWord, readLine, splitLine } from '../../src/cli/shell/words.ts';
import { UsageError } from '../../src/errors.ts';
import { FakeAgent, domainWith } from '../control/fake-agent.ts';
import { generatedFiles } from '../../packaging/generated.ts';
import { type Ended, runHere } from './run-cli.ts';

describe("the shell's words", () => {
  for (const [text, words] of [
    ['status web1', [['status', 'web1']]],
    ['  list\t--all ; status ', [['list', '--all'], ['status']]],
    [`hold 'my "guest"' # for backup`, [['hold', 'my "guest"']]],
    [`hold "my \\"guest\\"" ''`, [['hold', 'my "guest"', '']]],
    [`a\\ b c'd'"e"#f`, [['a b', 'cde#f']]],
    ["';' '\\'", [[';', '\\']]],
    [';;', []],
    ['# nothing', []],
  ] as const) {
    it(`are read from ${text}`, () => assert.deepEqual(splitLine(text), words));
  }

  for (const text of ["hold 'web1", 'hold "web1', 'hold web1\\', '"a\\"']) {
    it(`say what is missing in ${text}`, () => assert.throws(() => splitLine(text), /is missing/));
  }

  const character = fc.constantFrom(' ', '\t', '\n', ';', '#', "'", '"', '\\', 'a', '-', '$', 'ü', '😀');
  const word = fc.string({ unit: character, maxLength: 8 });

  it('are the same after they were quoted, whatever they are', () => {
    fc.assert(
      fc.property(fc.array(fc.array(word, { minLength: 1, maxLength: 4 }), { maxLength: 3 }), (lines) => {
        const text = lines.map((words) => words.map(quoteWord).join(' ')).join(';');
        assert.deepEqual(splitLine(text), lines);
      }),
    );
  });

  it('are read from any text, or it is refused; never anything else', () => {
    fc.assert(
      fc.property(fc.string({ unit: character, maxLength: 30 }), (line) => {
        const { missing } = readLine(line);
        if (missing === null) assert.ok(splitLine(line).every((words) => words.length > 0));
        else assert.throws(() => splitLine(line), UsageError);
      }),
    );
  });
});

describe("the shell's completion", () => {
  const lookups = {
    domains: () => Promise.resolve(['web1', 'web2', 'a guest']),
    disks: (domain: string) => Promise.resolve(domain === 'web1' ? ['vda', 'vdb'] : []),
  };
  const offered = async (text: string): Promise<string[]> =>
    (await complete(text, commands, lookups)).words.map((word) => word.trimEnd());

  for (const [text, words, end] of [
    ['sta', ['status', 'start'], 'sta'],
    ['help ex', [], 'ex'],
    ['help eve', ['events'], 'eve'],
    ['status we', ['web1', 'web2'], 'we'],
    ['list; hold ', ['web1', 'web2', "'a guest'"], ''],
    ["hold 'a ", ["'a guest'"], "'a "],
    ['failover web1 --disk ', ['vda', 'vdb'], ''],
    ['failover --disk ', [], ''],
    ['failover web2 --disk vd', [], 'vd'],
    ['protect web1 --policy s', ['strict'], 's'],
    ['events --domain a', ["'a guest'"], 'a'],
    ['resync web1 --f', ['--full'], '--f'],
    ['nonsense ', [], ''],
  ] as const) {
    it(`offers ${words.join(', ') || 'nothing'} after '${text}'`, async () => {
      assert.deepEqual((await offered(text)).sort(), [...words].sort());
      assert.equal((await complete(text, commands, lookups)).end, end);
    });
  }

  it('does not offer an option again, and offers all of the others', async () => {
    const options = await offered('rebuild web1 --format raw --');
    assert.ok(options.includes('--to') && options.includes('--no-wait'));
    assert.ok(!options.includes('--format'));
  });

  it('offers nothing when the agent does not answer', async () => {
    const broken = { ...lookups, domains: () => Promise.reject(new Error('no agent')) };
    assert.deepEqual((await complete('hold w', commands, broken)).words, []);
  });

  it('takes any line', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.string({ unit: fc.constantFrom(' ', ';', "'", '"', '\\', '-', '#', 'hold', 'web1'), maxLength: 12 }),
        async (text) => {
          const { end } = await complete(text, commands, lookups);
          assert.ok(text.endsWith(end));
        },
      ),
    );
  });
});

describe('virt-cdp without a command', () => {
  let agent: FakeAgent;
  beforeEach(async () => {
    agent = await new FakeAgent().start();
    agent.statuses.set('web1', domainWith());
  });
  afterEach(() => agent.stop());

  function shell(text: string, ...globals: string[]): Promise<Ended> {
    const lines = new PassThrough();
    lines.end(text);
    return runHere(['--socket', agent.socketPath, ...globals], { input: { lines, screen: null } });
  }

  it('does the commands of its input, one after the other', async () => {
    const { code, stdout, stderr } = await shell('hold web1; release web1\n\nlist\nhelp hold\n');
    assert.deepEqual([code, stderr], [0, '']);
    assert.match(stdout, /hold of web1 accepted\nrelease of web1 accepted\n[^]*NAME +RUN[^]*Usage: virt-cdp hold/);
  });

  it('has the exit code of the last one, and goes on after one that failed, but not in its line', async () => {
    const failed = await shell('nonsense; hold web1\nrelease web1\nhold "web1\n');
    assert.equal(failed.code, 2);
    assert.equal(failed.stdout, 'release of web1 accepted\nvda  protected\n');
    assert.match(failed.stderr, /unknown command 'nonsense'[^]*the closing " is missing/);
    assert.equal((await shell('nonsense\nlist')).code, 0);
  });

  it('ends at quit and at exit', async () => {
    for (const word of ['quit', 'exit']) assert.equal((await shell(`hold web1\n${word}\nrelease web1\n`)).code, 0);
    assert.deepEqual(
      agent.acts.map(({ action }) => action),
      ['hold', 'hold'],
    );
  });

  it('keeps the global options that it was begun with', async () => {
    const { stdout } = await shell('list\nhold "\n', '--json');
    const [list, error] = stdout
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line) as unknown);
    assert.deepEqual(list, [domainWith()]);
    assert.equal((error as { error: { code: string } }).error.code, 'usage');
  });

  describe('at a terminal', () => {
    let folder: string;
    before(() => (folder = mkdtempSync(join(tmpdir(), 'virt-cdp-shell-'))));
    after(() => rmSync(folder, { recursive: true }));

    it('prompts, completes with Tab, keeps a history, and Ctrl-C ends a command but not the shell', async () => {
      const child = spawn(
        'script',
        ['-qec', `${process.execPath} --import tsx src/cli/main.ts --socket ${agent.socketPath}`, '/dev/null'],
        { env: { ...process.env, XDG_CACHE_HOME: folder, TERM: 'xterm' }, stdio: ['pipe', 'pipe', 'inherit'] },
      );
      let seen = '';
      const chunks = child.stdout.setEncoding('utf8').iterator() as AsyncIterator<string, undefined>;
      const shows = async (text: string): Promise<void> => {
        while (!seen.includes(text)) {
          const { value } = await chunks.next();
          if (value === undefined) throw new Error(`the shell ended without '${text}': ${seen}`);
          seen += value;
        }
        seen = seen.slice(seen.indexOf(text) + text.length);
      };
      await shows('virt-cdp # ');
      child.stdin.write('hol\t');
      await shows('hold ');
      child.stdin.write('we\t');
      await shows('b1 ');
      child.stdin.write('\r');
      await shows('hold of web1 accepted');
      await shows('virt-cdp # ');
      child.stdin.write('events --follow\r');
      agent.emit({ event: 'rebuild-started' });
      await shows('rebuild-started');
      child.stdin.write('\u0003');
      await shows('virt-cdp # ');
      child.stdin.write('list\r');
      await shows('protected');
      const ended = once(child, 'exit');
      child.stdin.write('\u0004');
      await ended;
      assert.equal(child.exitCode, 0);
      const history = readFileSync(join(folder, 'virt-cdp/history'), 'utf8');
      assert.equal(history, 'hold web1 \nevents --follow\nlist\n');
    });
  });
});

describe('tables', () => {
  const rows = [
    ['NAME', 'RUN'],
    ['a-very-long-name-of-a-domain', 'running'],
  ];
  it('are as wide as they are', () => assert.equal(formatTable(rows)[1], 'a-very-long-name-of-a-domain  running'));
  it('fit a terminal', () => assert.deepEqual(formatTable(rows, 20), ['NAME         RUN', 'a-very-lon…  running']));
});

describe('packaging', () => {
  for (const [name, text] of Object.entries(generatedFiles())) {
    it(`has ${name} as the programs' tables make it (npm run packaging)`, () =>
      assert.equal(readFileSync(join('packaging', name), 'utf8'), text));
  }

  it('has manual pages that name every command, option and key of the configuration, and no roff by accident', () => {
    const files = generatedFiles();
    const text = (name: string): string => (files[`man/${name}`] ?? '').replaceAll('\\-', '-');
    for (const command of commands) {
      assert.ok(text('virt-cdp.1').includes(`.SS \\fB${command.name}\\fP`), command.name);
      for (const option of Object.keys(command.options))
        assert.ok(text('virt-cdp.1').includes(`\\fB${dashed(option)}`), option);
    }
    const keys = readFileSync('packaging/virt-cdp.toml', 'utf8').match(/(?<=^# +)[a-z_.]+(?= = )/gm) ?? [];
    assert.ok(keys.length > 10);
    for (const key of keys) assert.ok(text('virt-cdp.toml.5').includes(`\\fB${key} = `), key);
    for (const [name, page] of Object.entries(files).filter(([file]) => file.startsWith('man/')))
      for (const line of page.split('\n')) assert.match(line, /^(\.(TH|SH|SS|TP|TQ|PP)\b|[^.']|$)/, `${name}: ${line}`);
  });

  it('completes in bash', () => {
    const offered = (...words: string[]): string[] => {
      const script =
        'source packaging/virt-cdp.bash-completion; _virt_cdp_domains() { echo web1 web2; }; COMP_WORDS=("$@"); ' +
        'COMP_CWORD=$(($# - 1)); _virt_cdp; printf "%s\\n" "${COMPREPLY[@]}"';
      return execFileSync('bash', ['-c', script, 'bash', ...words], { encoding: 'utf8' })
        .trim()
        .split('\n');
    };
    assert.deepEqual(offered('virt-cdp', 'sta'), ['status', 'start']);
    assert.deepEqual(offered('virt-cdp', '--socket', '/s', 'hold', ''), ['web1', 'web2']);
    assert.deepEqual(offered('virt-cdp', 'protect', 'web1', '--policy', 's'), ['strict']);
    assert.deepEqual(offered('virt-cdp', 'resync', 'web1', '--f'), ['--full']);
    assert.deepEqual(offered('virt-cdp', 'events', '--domain', 'web2'), ['web2']);
  });
});
