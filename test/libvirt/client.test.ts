import assert from 'node:assert/strict';
import { LibvirtClient } from '../../src/libvirt/client.ts';
import { undefineFlag } from '../../src/libvirt/constants.ts';
import { libvirtErrorCode } from '../../src/libvirt/errors.ts';
import { procedures } from '../../src/libvirt/procedures.ts';
import type { Procedure } from '../../src/libvirt/procedures.ts';
import { FakeDaemon } from './fake-daemon.ts';
import type { FakeCall } from './fake-daemon.ts';

const dom = { name: 'vm', uuid: '0f8fad5b-d9cb-469f-a165-70867728950e', id: 1 };

describe('client', () => {
  let daemon: FakeDaemon;
  let client: LibvirtClient;

  beforeEach(async () => {
    daemon = await FakeDaemon.start();
    client = await LibvirtClient.connect({ socketPath: daemon.socketPath });
  });

  afterEach(async () => {
    await client.close();
    await daemon.remove();
  });

  type Name = keyof typeof procedures;
  const sends: [string, Name, (calling: LibvirtClient) => Promise<unknown>, unknown, number][] = [
    ['active domains', 'listDomains', (c) => c.listDomains(), { domains: [], count: 0 }, 1],
    ['all domains', 'listDomains', (c) => c.listDomains({ all: true }), { domains: [], count: 0 }, 0],
    ['the live XML', 'xml', (c) => c.domainXml(dom), '<domain/>', 0],
    ['the whole configuration', 'xml', (c) => c.domainXml(dom, { inactive: true, secure: true }), '', 3],
    ['a start', 'create', (c) => c.create(dom), dom, 0],
    ['a start in pause', 'create', (c) => c.create(dom, { paused: true }), dom, 1],
    ['the whole XML of a save', 'managedSaveXml', (c) => c.managedSaveXml(dom, { secure: true }), '<domain/>', 1],
    ['a cancel', 'blockJobAbort', (c) => c.blockJobAbort(dom, 'vda'), undefined, 0],
    ['a pivot', 'blockJobAbort', (c) => c.blockJobAbort(dom, 'vda', { pivot: true, async: true }), undefined, 3],
    ['a full copy', 'blockCopy', (c) => c.blockCopy(dom, 'vda', '<disk/>'), undefined, 0],
    [
      'a copy to what exists, in step with the guest',
      'blockCopy',
      (c) => {
        const options = { reuseExternal: true, transientJob: true, synchronousWrites: true };
        return c.blockCopy(dom, 'vda', '<disk/>', options);
      },
      undefined,
      14,
    ],
    [
      'metadata of both',
      'setMetadata',
      (c) => c.setMetadata(dom, { uri: 'urn:x', key: 'x', xml: null, live: true, config: true }),
      undefined,
      3,
    ],
    ['live metadata', 'getMetadata', (c) => c.getMetadata(dom, { uri: 'urn:x', live: true }), '<x/>', 1],
    ['metadata of the configuration', 'getMetadata', (c) => c.getMetadata(dom, { uri: 'urn:x', config: true }), '', 2],
  ];
  for (const [what, name, act, result, expected] of sends) {
    it(`sends the flags ${expected} for ${what}`, async () => {
      const procedure = procedures[name];
      let sent: unknown;
      daemon.on(procedure, (call: FakeCall) => {
        sent = call.args(procedure as typeof procedures.xml).flags;
        call.answer(procedure as typeof procedures.xml, result as string);
      });
      await act(client);
      assert.equal(sent, expected);
    });
  }

  const passes: [Name, (calling: LibvirtClient) => Promise<unknown>, unknown, unknown][] = [
    ['lookupByName', (c) => c.lookupByName('vm'), 'vm', dom],
    ['lookupByUuid', (c) => c.lookupByUuid(dom.uuid), dom.uuid, dom],
    ['lookupById', (c) => c.lookupById(1), 1, dom],
    ['defineXml', (c) => c.defineXml('<domain/>'), { xml: '<domain/>', flags: 0 }, dom],
    ['undefine', (c) => c.undefine(dom, undefineFlag.nvram), { dom, flags: 4 }, undefined],
    ['suspend', (c) => c.suspend(dom), dom, undefined],
    ['resume', (c) => c.resume(dom), dom, undefined],
    ['destroy', (c) => c.destroy(dom), { dom, flags: 0 }, undefined],
    ['shutdown', (c) => c.shutdown(dom), { dom, flags: 0 }, undefined],
    ['reset', (c) => c.reset(dom), { dom, flags: 0 }, undefined],
    ['state', (c) => c.state(dom), { dom, flags: 0 }, { state: 3, reason: 5 }],
    ['isPersistent', (c) => c.isPersistent(dom), dom, true],
    ['updateDevice', (c) => c.updateDevice(dom, '<disk/>', 2), { dom, xml: '<disk/>', flags: 2 }, undefined],
    ['hasManagedSave', (c) => c.hasManagedSave(dom), { dom, flags: 0 }, true],
    ['managedSave', (c) => c.managedSave(dom), { dom, flags: 0 }, undefined],
    ['managedSaveRemove', (c) => c.managedSaveRemove(dom), { dom, flags: 0 }, undefined],
    ['managedSaveDefineXml', (c) => c.managedSaveDefineXml(dom, '<x/>'), { dom, xml: '<x/>', flags: 0 }, undefined],
    ['save', (c) => c.save(dom, '/f', null), { dom, path: '/f', xml: null, flags: 0 }, undefined],
    ['restore', (c) => c.restore('/f', '<x/>'), { path: '/f', xml: '<x/>', flags: 0 }, undefined],
    ['monitorCommand', (c) => c.qemuMonitorCommand(dom, '{}'), { dom, command: '{}', flags: 0 }, '{"return":{}}'],
  ];
  for (const [name, act, args, result] of passes) {
    it(`${name}: passes on what it is given and what the daemon answers`, async () => {
      const procedure = procedures[name] as Procedure<unknown, unknown>;
      let sent: unknown;
      daemon.on(procedure, (call) => {
        sent = call.args(procedure);
        call.answer(procedure, result);
      });
      assert.deepEqual(await act(client), result);
      assert.deepEqual(sent, args);
    });
  }

  it('limits a copy in bytes per second', async () => {
    let parameters: unknown;
    daemon.on(procedures.blockCopy, (call) => {
      ({ parameters } = call.args(procedures.blockCopy));
      call.answer(procedures.blockCopy, undefined);
    });
    await client.blockCopy(dom, 'vda', '<disk/>', { bandwidthBytesPerSec: 5_000_000_000 });
    assert.deepEqual(parameters, [{ field: 'bandwidth', value: 5_000_000_000 }]);
  });

  it('has null for metadata that is not there, and an error for everything else', async () => {
    let code: number = libvirtErrorCode.noDomainMetadata;
    daemon.on(procedures.getMetadata, (call) => call.refuse({ code, domain: 10, level: 2, text: 'no' }));
    assert.equal(await client.getMetadata(dom, { uri: 'urn:x', live: true }), null);
    code = libvirtErrorCode.operationInvalid;
    await assert.rejects(client.getMetadata(dom, { uri: 'urn:x', live: true }), { code });
  });

  it('has null for a disk without a job', async () => {
    const job = { type: 2, bandwidth: 0, cur: 1, end: 2 };
    let found = false;
    daemon.on(procedures.blockJobInfo, (call) => call.answer(procedures.blockJobInfo, { found, ...job }));
    assert.equal(await client.blockJobInfo(dom, 'vda'), null);
    found = true;
    assert.deepEqual(await client.blockJobInfo(dom, 'vda'), job);
  });

  it('tells a job from none, and from one that has ended', async () => {
    const nothing = { timeElapsed: 0, timeRemaining: 0, dataTotal: 0, dataProcessed: 0, dataRemaining: 0 };
    const memory = { memTotal: 0, memProcessed: 0, memRemaining: 0, fileTotal: 0, fileProcessed: 0, fileRemaining: 0 };
    let type = 0;
    daemon.on(procedures.jobInfo, (call) => call.answer(procedures.jobInfo, { type, ...nothing, ...memory }));
    const found: boolean[] = [];
    for (type = 0; type <= 5; type++) found.push(await client.hasJob(dom));
    assert.deepEqual(found, [false, true, true, false, false, false]);
  });

  it('tells a migration to another host from a save, and from one that has ended', async () => {
    const answers: [type: number, operation: bigint][] = [
      [2, 5n],
      [2, 2n],
      [3, 5n],
    ];
    const found: boolean[] = [];
    for (const [type, value] of answers) {
      const parameters = [
        { field: 'time_elapsed', type: 4, value: 7n },
        { field: 'operation', type: 1, value },
      ];
      daemon.on(procedures.jobStats, (call) => call.answer(procedures.jobStats, { type, parameters }));
      found.push(await client.isLeaving(dom));
    }
    assert.deepEqual(found, [true, false, false]);
  });

  it('has the bytes of a QEMU, or null if libvirt does not know', async () => {
    let stats = [
      { tag: 6, value: 1 },
      { tag: 7, value: 2048 },
    ];
    daemon.on(procedures.memoryStats, (call) => call.answer(procedures.memoryStats, stats));
    assert.equal(await client.residentBytes(dom), 2 * 1024 * 1024);
    stats = [];
    assert.equal(await client.residentBytes(dom), null);
  });

  it('reads a secret’s value by its usage', async () => {
    const secret = { uuid: dom.uuid, usageType: 2, usageId: 'ceph' };
    daemon.on(procedures.secretByUsage, (call) => call.answer(procedures.secretByUsage, secret));
    daemon.on(procedures.secretValue, (call) => {
      assert.deepEqual(call.args(procedures.secretValue), { secret, flags: 0 });
      call.answer(procedures.secretValue, Buffer.from([0, 255]));
    });
    assert.deepEqual(await client.secretValueByUsage(2, 'ceph'), Buffer.from([0, 255]));
  });

  it('does not come back once it is lost', async () => {
    await daemon.die();
    await daemon.listen();
    await assert.rejects(client.version());
    assert.equal(daemon.peers.length, 0);
  });
});
