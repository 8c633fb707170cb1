import assert from 'node:assert/strict';
import { mock } from 'node:test';
import { RecordKeeper } from '../../src/protection/record-keeper.ts';
import type { DomainRecord } from '../../src/protection/record.ts';
import { look } from './observations.ts';

/** A store that answers when it is told to. */
class SlowStore {
  readonly asked: { name: string; answer: (error?: Error) => void }[] = [];
  /** What is in the file. */
  holds: string | null = null;

  save(_uuid: string, { name }: DomainRecord): Promise<void> {
    return new Promise((resolve, reject) => {
      this.asked.push({
        name,
        answer: (error) => {
          if (error === undefined) this.holds = name;
          if (error === undefined) resolve();
          else reject(error);
        },
      });
    });
  }

  remove(): Promise<void> {
    return Promise.resolve();
  }

  /** Answers the write that it was asked for last, and lets come what comes of it. */
  async answer(error?: Error): Promise<void> {
    this.asked.at(-1)?.answer(error);
    await settle();
  }
}

/** Whatever waits for promises that are kept has gone on. */
async function settle(): Promise<void> {
  await new Promise((resolve) => setImmediate(resolve));
}

describe('RecordKeeper', () => {
  let store: SlowStore;
  let keeper: RecordKeeper;
  let changes: number;
  let told: string[];

  // The name tells one record from another.
  const named = (name: string, policy: DomainRecord['policy'] = 'available'): DomainRecord => ({
    ...look().record,
    name,
    policy,
  });
  const names = (): string[] => store.asked.map(({ name }) => name);
  const saveInTime = (record: DomainRecord): Promise<void> => keeper.saveInTime(record, (why) => told.push(why));

  /** Asks for it of a store that does not answer, until the patience with it is over. */
  async function late(work: Promise<void>, ms = 2_000): Promise<PromiseSettledResult<void>> {
    const [outcome] = await Promise.all([Promise.allSettled([work]), settle().then(() => mock.timers.tick(ms))]);
    return outcome[0];
  }

  beforeEach(() => {
    mock.timers.enable({ apis: ['setTimeout'] });
    store = new SlowStore();
    changes = 0;
    told = [];
    keeper = new RecordKeeper(store, named('first'), () => (changes += 1));
  });

  afterEach(() => mock.timers.reset());

  it('takes over what was saved only when it is durable', async () => {
    const saved = keeper.save(named('second'));
    await settle();
    assert.equal(keeper.record.name, 'first');
    await store.answer();
    await saved;
    assert.deepEqual([keeper.record.name, store.holds, changes], ['second', 'second', 1]);
  });

  it('keeps what it had when a save fails, and writes that again over what may have come into the file', async () => {
    const failing = keeper.save(named('second'));
    await settle();
    await Promise.all([assert.rejects(failing, /no space/), store.answer(new Error('no space'))]);
    assert.equal(keeper.record.name, 'first');
    const caughtUp = keeper.catchUp();
    await settle();
    await store.answer();
    await caughtUp;
    assert.equal(store.holds, 'first');
  });

  it('writes what it had over a record that came into the file after its save was given up', async () => {
    await late(keeper.save(named('second')), 10_000);
    await store.answer();
    assert.deepEqual([store.holds, keeper.record.name], ['second', 'first']);
    const caughtUp = keeper.catchUp();
    await settle();
    await store.answer();
    await caughtUp;
    assert.equal(store.holds, 'first');
  });

  it('lets an available domain go on without a store that does not answer, says so, and writes as soon as it does', async () => {
    assert.equal((await late(saveInTime(named('second')))).status, 'fulfilled');
    assert.deepEqual([keeper.record.name, store.holds, changes], ['second', null, 1]);
    assert.match(told.join(), /2000 ms/);
    await store.answer();
    assert.equal(store.holds, 'second');
    await keeper.catchUp();
    assert.deepEqual(names(), ['second'], 'there was nothing left to be written');
  });

  it('says so once for as long as it lasts, and anew the next time', async () => {
    await late(saveInTime(named('second')));
    await late(saveInTime(named('third')));
    assert.equal(told.length, 1);
    await store.answer();
    await store.answer();
    assert.equal(store.holds, 'third');
    await late(saveInTime(named('fourth')));
    assert.equal(told.length, 2);
  });

  it('never goes back to an older record, and leaves out what is older by the time that the store answers', async () => {
    await late(saveInTime(named('second')));
    await late(saveInTime(named('third')));
    await late(saveInTime(named('fourth')));
    await late(keeper.catchUp());
    assert.deepEqual(names(), ['second'], 'one write at a time');
    await store.answer();
    await store.answer();
    assert.deepEqual([names(), store.holds], [['second', 'fourth'], 'fourth']);
    await keeper.catchUp();
    assert.equal(store.asked.length, 2);
  });

  it('lets an available domain go on when the store fails, and tries again until it is written', async () => {
    const saving = saveInTime(named('second'));
    await settle();
    await store.answer(new Error('read-only file system'));
    await saving;
    assert.deepEqual(told, ['read-only file system']);
    const trying = keeper.catchUp();
    await settle();
    await Promise.all([assert.rejects(trying, /still/), store.answer(new Error('still read-only'))]);
    const caughtUp = keeper.catchUp();
    await settle();
    await store.answer();
    await caughtUp;
    assert.equal(store.holds, 'second');
  });

  it('does not wait for the store without end when it catches up', async () => {
    await late(saveInTime(named('second')));
    assert.equal((await late(keeper.catchUp())).status, 'rejected');
  });

  it('makes a strict domain wait, and says so: its save fails, to be tried again, and nothing has changed', async () => {
    const outcome = await late(saveInTime(named('second', 'strict')), 10_000);
    assert.equal(outcome.status, 'rejected');
    assert.deepEqual([keeper.record.name, changes, told.length], ['first', 0, 1]);

    const again = saveInTime(named('second', 'strict'));
    await store.answer();
    await store.answer();
    await again;
    assert.deepEqual([keeper.record.name, store.holds, changes, told.length], ['second', 'second', 1, 1]);
  });
});
