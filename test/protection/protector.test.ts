import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import winston from 'winston';
import type { ProtectionEvent } from '../../src/protection/model.ts';
import { Protector } from '../../src/protection/protector.ts';
import { domainRecordSchema, type AtStop, type DomainRecord } from '../../src/protection/record.ts';
import type { Shared } from '../../src/protection/shared.ts';
import { ImageOpener } from '../../src/storage/opener.ts';
import { scratchOf } from '../../src/storage/scratch.ts';
import { EventLog } from '../../src/store/event-log.ts';
import { RecordStore } from '../../src/store/record-store.ts';
import { answersOf, captured } from '../graph/captured.ts';
import { look, record } from './observations.ts';
import { WiredDomain } from './wired-domain.ts';

const atStop: AtStop = { clean: true, primary: 'as it was' };

/** It has stopped in order, with both copies current. */
const stopped: DomainRecord = {
  ...look().record,
  lastStart: 'first start',
  disks: [{ ...record.both, state: 'stopped', atStop }],
};

describe('a run of which the agent hears', () => {
  let folder: string;
  let domain: WiredDomain;
  let protector: Protector;
  /** What was known of the copies at the look that led to the first step. */
  let known: unknown[];

  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), 'virt-cdp-protector-'));
    domain = await WiredDomain.run({
      ...answersOf(captured('plain')),
      'query-status': () => ({ running: true, status: 'running' }),
      'query-blockstats': () => [],
    });
    known = [];
    protector = new Protector(await shared(), stopped);
  });

  afterEach(async () => {
    await protector.close();
    await domain.close();
    await rm(folder, { recursive: true });
  });

  /** No second step is taken. */
  async function shared(): Promise<Shared> {
    const nothing = (): void => undefined;
    return {
      store: await RecordStore.open(folder, domainRecordSchema),
      events: new EventLog<ProtectionEvent>(folder),
      log: winston.createLogger({ silent: true }),
      settings: () => ({ engine: 'auto', maxBytesPerS: 0 }),
      probeDeadlineMs: () => 1_000,
      scratchOf: (uuid) => scratchOf(folder, uuid),
      opener: new ImageOpener({
        readSecret: () => Promise.reject(new Error('there is none')),
        timeoutMs: () => 1_000,
        folder,
        certificates: () => Promise.resolve(folder),
      }),
      relays: domain.live.relays,
      recordChanged: nothing,
      shown: nothing,
      watchFiles: nothing,
      watchCopies: nothing,
      afterStep: () => {
        known.push(protector.observation?.disks[0]?.atStop);
        void protector.close();
      },
      undeclare: () => Promise.resolve(),
    };
  }

  /** Something is under way in the queue that a look follows, and goes on when the run has been heard of. */
  async function behindAnother(hear: () => Promise<void>): Promise<void> {
    let goOn: () => void = () => undefined;
    const heard = new Promise<void>((resolve) => (goOn = resolve));
    const underWay = protector.follow(() => heard.then(() => ({ remarks: new Map(), notes: [] })));
    const looked = hear();
    goOn();
    await Promise.all([underWay, looked]);
  }

  it('is not looked at before it is known that its copies were identical when it last stopped', async () => {
    await behindAnother(() => protector.attach(domain.live, { start: 'second start', booted: true }));
    assert.deepEqual(known, [atStop]);
    assert.equal(protector.record.lastStart, 'second start');
  });

  it('is not looked at before it is known that its copies were identical on the host that it comes from', async () => {
    const identical = ['vda'];
    await behindAnother(() => protector.attach(domain.live, { start: null, booted: false, identical }));
    assert.deepEqual(known, [{ clean: true, primary: null }]);
  });
});
