import assert from 'node:assert/strict';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import winston from 'winston';
import { parseConfig } from '../../src/config/config.ts';
import { lifecycleEvent, shutoffReason, startedDetail } from '../../src/libvirt/constants.ts';
import { eventKinds } from '../../src/libvirt/events.ts';
import { procedures } from '../../src/libvirt/procedures.ts';
import { LibvirtSession } from '../../src/libvirt/session.ts';
import { Host } from '../../src/protection/host.ts';
import type { ProtectionEvent } from '../../src/protection/model.ts';
import { domainRecordSchema, type DomainRecord } from '../../src/protection/record.ts';
import { EventLog } from '../../src/store/event-log.ts';
import { RecordStore } from '../../src/store/record-store.ts';
import { FakeDaemon, until } from '../libvirt/fake-daemon.ts';
import { look, record } from './observations.ts';

const { name, uuid } = look().record;

/** It has stopped in order, with both copies current. */
const stopped: DomainRecord = {
  ...look().record,
  lastStart: 'first start',
  disks: [{ ...record.both, state: 'stopped', atStop: { clean: true, primary: 'as it was' } }],
};

const xml = `<domain type='kvm'><name>${name}</name><uuid>${uuid}</uuid><devices>
<disk type='file' device='disk'><driver name='qemu' type='raw' error_policy='stop' rerror_policy='stop'/><source file='/primary/vda'/>
<target dev='vda' bus='virtio'/></disk></devices></domain>`;

describe('a run that ended before anybody looked at it', () => {
  let folder: string;
  let daemon: FakeDaemon;
  let session: LibvirtSession;
  let host: Host;
  let failedStarts: number;
  /** Of being shut off, as libvirt gives it. */
  let reason: number;

  beforeEach(async () => {
    failedStarts = 0;
    reason = 1;
    folder = await mkdtemp(join(tmpdir(), 'virt-cdp-host-'));
    daemon = await FakeDaemon.start();
    const off = { name, uuid, id: -1 };
    daemon.on(procedures.lookupByUuid, (call) => call.answer(procedures.lookupByUuid, off));
    daemon.on(procedures.listDomains, (call) => call.answer(procedures.listDomains, { domains: [off], count: 1 }));
    daemon.on(procedures.isPersistent, (call) => call.answer(procedures.isPersistent, true));
    daemon.on(procedures.xml, (call) => call.answer(procedures.xml, xml));
    daemon.on(procedures.defineXml, (call) => call.answer(procedures.defineXml, off));
    daemon.on(procedures.state, (call) => call.answer(procedures.state, { state: 5, reason }));
    const store = await RecordStore.open(folder, domainRecordSchema);
    await store.save(uuid, stopped);
    await mkdir(join(folder, 'starts'));
    await theHookSees('first start');
    session = LibvirtSession.start({ socketPath: daemon.socketPath, minBackoffMs: 10 });
    const nothing = (): Promise<void> => Promise.resolve();
    host = new Host({
      session,
      store,
      events: new EventLog<ProtectionEvent>(folder),
      log: winston.createLogger({ silent: true }),
      config: () => ({ ...parseConfig('', 'none'), store: folder, socket: join(folder, 'socket') }),
      shown: () => undefined,
      seen: () => undefined,
      startFailed: () => Promise.resolve(void (failedStarts += 1)),
      helpless: nothing,
      afterStep: () => undefined,
    });
    await host.start();
    await until(() => session.state === 'connected');
    await host.looked(uuid);
    assert.equal(isMirrorCurrent(), true);
  });

  afterEach(async () => {
    await host.close();
    await session.close();
    await daemon.remove();
    await host.events.written();
    await rm(folder, { recursive: true });
  });

  const theHookSees = (start: string): Promise<void> => writeFile(join(folder, 'starts', uuid), `${start}\n`);

  const isMirrorCurrent = (): boolean | undefined => host.protectorOf(uuid)?.record.disks[0]?.mirror.current;

  it('has made the mirror stale: its guest wrote to the primary alone', async () => {
    await theHookSees('second start');
    const domain = { name, uuid, id: 7 };
    for (const peer of daemon.peers) {
      peer.event(eventKinds.lifecycle, { domain, event: lifecycleEvent.started, detail: startedDetail.booted });
      peer.event(eventKinds.lifecycle, { domain, event: lifecycleEvent.stopped, detail: 0 });
    }
    await until(() => isMirrorCurrent() === false);
    assert.equal(host.protectorOf(uuid)?.record.disks[0]?.atStop, null);
  });

  it('has made it stale also while libvirt was out of reach', async () => {
    await daemon.die();
    await theHookSees('second start');
    await daemon.listen();
    await until(() => isMirrorCurrent() === false);
  });

  /** The hook asks before it notes the start; libvirt is out of reach until the domain is off again. */
  async function startUnseen(): Promise<void> {
    host.answerHook('prepare', xml);
    await daemon.die();
    await theHookSees('second start');
    await daemon.listen();
  }

  it('has made it stale also if its start was watched', async () => {
    await startUnseen();
    await until(() => isMirrorCurrent() === false);
    assert.equal(failedStarts, 0);
  });

  it('was none if libvirt says that its start failed: both copies are current still', async () => {
    reason = shutoffReason.failed;
    await startUnseen();
    await until(() => failedStarts === 1);
    await host.looked(uuid);
    assert.equal(isMirrorCurrent(), true);
  });
});
