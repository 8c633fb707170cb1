import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import {
  appendFileSync,
  closeSync,
  constants,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { z } from 'zod';
import { CdpError } from '../../src/errors.ts';
import { writeDurably } from '../../src/store/durable-file.ts';
import { EventLog } from '../../src/store/event-log.ts';
import { RecordStore } from '../../src/store/record-store.ts';
import { lastStart } from '../../src/store/start-marker.ts';

let folder: string;
beforeEach(() => (folder = mkdtempSync(join(tmpdir(), 'store-'))));
afterEach(() => rmSync(folder, { recursive: true }));

describe('writeDurably', () => {
  it('replaces a file, and leaves no draft', async () => {
    const path = join(folder, 'a');
    await writeDurably(path, 'old');
    await writeDurably(path, 'new');
    assert.equal(readFileSync(path, 'utf8'), 'new');
    assert.deepEqual(readdirSync(folder), ['a']);
    assert.equal(statSync(path).mode & 0o777, 0o600);
  });

  it('writes over the draft of one that was killed', async () => {
    writeFileSync(join(folder, 'a.new'), 'a longer text, half written');
    await writeDurably(join(folder, 'a'), 'new');
    assert.equal(readFileSync(join(folder, 'a'), 'utf8'), 'new');
  });

  it('leaves the old file whole when the new one can not be written', async () => {
    const path = join(folder, 'a');
    await writeDurably(path, 'old');
    mkdirSync(`${path}.new`);
    await assert.rejects(writeDurably(path, 'new'));
    assert.equal(readFileSync(path, 'utf8'), 'old');
  });
});

describe('RecordStore', () => {
  const schema = z.strictObject({ uuid: z.string(), current: z.boolean() });
  const open = () => RecordStore.open(folder, schema);

  it('gives back what was saved, in a later life too', async () => {
    await (await open()).save('u1', { uuid: 'u1', current: true });
    await (await open()).save('u2', { uuid: 'u2', current: false });
    const { records, unreadable } = await (await open()).all();
    assert.equal(unreadable.size, 0);
    assert.deepEqual(
      records.sort((a, b) => a.uuid.localeCompare(b.uuid)),
      [
        { uuid: 'u1', current: true },
        { uuid: 'u2', current: false },
      ],
    );
  });

  it('forgets what was removed, and does not mind what was not there', async () => {
    const store = await open();
    await store.save('u1', { uuid: 'u1', current: true });
    await store.remove('u1');
    await store.remove('u1');
    assert.deepEqual((await store.all()).records, []);
  });

  for (const [what, text] of [
    ['cut off', '{"uuid": "u1", "cur'],
    ['of another version', '{"uuid": "u1", "current": true, "more": 1}'],
    ['empty', ''],
    ["another domain's", '{"uuid": "u2", "current": true}'],
  ] as const) {
    it(`names a file that is ${what}, guesses nothing, and reads the others`, async () => {
      const store = await open();
      await store.save('u3', { uuid: 'u3', current: true });
      writeFileSync(join(folder, 'domains', 'u1.json'), text);
      const { records, unreadable } = await store.all();
      assert.deepEqual(records, [{ uuid: 'u3', current: true }]);
      assert.deepEqual([...unreadable.keys()], ['u1']);
      const problem = unreadable.get('u1');
      assert.ok(
        problem instanceof CdpError && problem.code === 'record-invalid' && problem.message.includes('u1.json'),
      );
    });
  }

  it('passes over the draft of a killed agent', async () => {
    const store = await open();
    writeFileSync(join(folder, 'domains', 'u1.json.new'), '{');
    assert.deepEqual(await store.all(), { records: [], unreadable: new Map() });
  });
});

describe('EventLog', () => {
  const open = () => new EventLog<{ seq: number; event: string }>(folder);
  const file = (): string => join(folder, 'events.jsonl');

  const names = (log: ReturnType<typeof open>, since = 0): string[] => log.since(since).map(({ event }) => event);

  it('numbers events, and goes on numbering in a later life', async () => {
    const first = open();
    assert.deepEqual([first.append({ event: 'a' }).seq, first.append({ event: 'b' }).seq], [1, 2]);
    await first.written();
    const second = open();
    assert.equal(second.append({ event: 'c' }).seq, 3);
    assert.deepEqual(names(second, 1), ['b', 'c']);
    await second.written();
  });

  it('passes over a line that a crash cut off', async () => {
    const first = open();
    first.append({ event: 'a' });
    await first.written();
    appendFileSync(file(), '{"seq": 2, "ev');
    const log = open();
    assert.deepEqual(names(log), ['a']);
    assert.equal(log.append({ event: 'b' }).seq, 2);
    await log.written();
    assert.deepEqual(names(open()), ['a', 'b']);
  });

  it('tells those who follow', async () => {
    const log = open();
    const heard: string[] = [];
    const stop = log.follow(({ event }) => heard.push(event));
    log.append({ event: 'a' });
    stop();
    log.append({ event: 'b' });
    assert.deepEqual(heard, ['a']);
    await log.written();
  });

  it('is turned over when it is long, and keeps its numbers', async () => {
    writeFileSync(file(), '{"seq": 7, "event": "old"}\n' + ' '.repeat(9 * 1024 * 1024));
    const log = open();
    assert.equal(log.append({ event: 'new' }).seq, 8);
    await log.written();
    assert.ok(existsSync(`${file()}.1`));
    assert.deepEqual(names(open()), ['old', 'new']);
  });

  it('fails nobody when the store takes nothing, and writes that with the next event', async () => {
    const log = open();
    mkdirSync(file());
    log.append({ event: 'a' });
    await log.written();
    assert.deepEqual(names(log), ['a']);
    rmSync(file(), { recursive: true });
    log.append({ event: 'b' });
    await log.written();
    assert.deepEqual(names(open()), ['a', 'b']);
  });

  it('holds up nobody while the store hangs', async () => {
    const log = open();
    execFileSync('mkfifo', [file()]);
    log.append({ event: 'a' });
    log.append({ event: 'b' });
    assert.deepEqual(names(log), ['a', 'b']);
    // A pipe takes nothing until somebody reads.
    const reader = openSync(file(), constants.O_RDONLY | constants.O_NONBLOCK);
    await log.written();
    assert.match(readFileSync(reader, 'utf8'), /"a".*\n.*"b"/);
    closeSync(reader);
  });
});

describe('the mark of a start', () => {
  it('is what the hook wrote', async () => {
    assert.equal(await lastStart(folder, 'u1'), null);
    mkdirSync(join(folder, 'starts'));
    writeFileSync(join(folder, 'starts', 'u1'), 'one\n');
    assert.equal(await lastStart(folder, 'u1'), 'one');
    assert.equal(await lastStart(folder, 'u2'), null);
  });
});
