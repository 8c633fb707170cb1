import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';

describe('the log', () => {
  /** What a process writes to stderr that logs a line of each level. */
  function lines(env: Record<string, string>): string[] {
    const script =
      "import { createLog } from './src/log.ts'; const log = createLog('debug');" +
      "for (const level of ['error', 'warn', 'info', 'debug']) log.log(level, 'it happened', { domain: 'web1' });";
    const { PATH = '' } = process.env;
    const command = `exec "$0" --import tsx --input-type=module --eval "$1" 2>&1`;
    const text = execFileSync('sh', ['-c', command, process.execPath, script], {
      env: { PATH, ...env },
      encoding: 'utf8',
    });
    return text.trim().split('\n');
  }

  it('is one JSON object a line, with constant keys', () => {
    const [first, ...others] = lines({}).map((line) => JSON.parse(line) as Record<string, string>);
    assert.equal(others.length, 3);
    assert.deepEqual(Object.keys(first ?? {}).sort(), ['domain', 'level', 'message', 'timestamp']);
  });

  it("has journald's priority before each line where journald listens", () => {
    const told = lines({ JOURNAL_STREAM: '8:1' });
    assert.deepEqual(
      told.map((line) => line.slice(0, 4)),
      ['<3>{', '<4>{', '<6>{', '<7>{'],
    );
    for (const line of told) JSON.parse(line.slice(3));
  });
});
