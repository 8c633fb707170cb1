import assert from 'node:assert/strict';
import { once } from 'node:events';
import { connect, createServer, type AddressInfo, type Server, type Socket } from 'node:net';
import type { Image } from '../../src/domain/image.ts';
import { socketsTo } from '../../src/health/sockets.ts';
import { DomainMemory } from '../../src/protection/domain-memory.ts';
import type { Observation } from '../../src/protection/observation.ts';
import { observe } from '../../src/protection/observe.ts';
import type { DomainRecord } from '../../src/protection/record.ts';
import type { QmpEvent } from '../../src/qmp/monitor.ts';
import { parseImageUri } from '../../src/storage/image.ts';
import { answersOf, captured } from '../graph/captured.ts';
import type { Answers } from '../qmp/fake-qemu.ts';
import { look, record } from './observations.ts';
import { WiredDomain } from './wired-domain.ts';

const event = (name: string, data: QmpEvent['data'] = {}): QmpEvent => ({ event: name, timeMs: 0, data });
const mirrorFailed = event('QUORUM_REPORT_BAD', {
  type: 'write',
  'node-name': 'cdp-vda-mirror',
  error: 'Input/output error',
});

/** A pair whose mirror is reached by a connection, which its QEMU, this process, has. */
describe("a look at a mirror's connection", () => {
  let server: Server;
  let port: number;
  let connection: Socket;
  let answers: Answers;
  let domain: WiredDomain;
  let memory: DomainMemory;
  let last: Observation;
  let told: string[];

  beforeEach(async () => {
    server = createServer((socket) => socket.resume()).listen(0, '127.0.0.1');
    await once(server, 'listening');
    ({ port } = server.address() as AddressInfo);
    await reconnect();
    answers = pairOver(connections()[0] ?? '');
    domain = await WiredDomain.run(answers);
    memory = new DomainMemory();
    told = [];
  });

  afterEach(async () => {
    await domain.close();
    connection.destroy();
    server.close();
  });

  const connections = (): string[] => socketsTo(process.pid, { port });

  async function reconnect(): Promise<void> {
    connection = connect(port, '127.0.0.1');
    await once(connection, 'connect');
  }

  const lost = (dev: string, why: string): void => void told.push(`${dev}: ${why}`);

  async function lookOnce(): Promise<void> {
    const mirror: Image = parseImageUri(`nbd://127.0.0.1:${port}/vda`);
    const disk = { ...record.both, mirror: { ...record.both.mirror, image: mirror } };
    last = await observe(
      domain.live,
      { ...look().record, disks: [disk] },
      memory,
      { engine: 'auto', maxBytesPerS: 0 },
      lost,
    );
  }

  const hear = (what: QmpEvent): void => memory.learn(what, last.disks, (dev, _side, why) => lost(dev, why));

  it('takes a QEMU that ends, closing its connections, for none that has made another', async () => {
    await lookOnce();
    hear(event('SHUTDOWN', { guest: true }));
    answers['query-status'] = () => ({ running: false, status: 'shutdown' });
    const tellDevices = answers['query-block'];
    answers['query-block'] = (args) => {
      connection.destroy();
      return tellDevices?.(args);
    };
    await lookOnce();
    assert.deepEqual(connections(), [], 'the connection was closed during the look');
    assert.deepEqual(told, []);
    assert.deepEqual(memory.stopped(last.disks), { clean: true, pairs: ['vda'], open: ['vda'] });
  });

  it('tells once that the mirror is lost, also if its requests fail afterwards', async () => {
    await lookOnce();
    connection.destroy();
    await reconnect();
    await lookOnce();
    assert.equal(told.length, 1);
    assert.match(told[0] ?? '', /^vda: its server was away/);
    hear(mirrorFailed);
    await lookOnce();
    assert.equal(told.length, 1, told.join());
    assert.deepEqual(memory.stopped(last.disks).pairs, []);
  });

  it('tells nothing that a failed request has told before', async () => {
    await lookOnce();
    connection.destroy();
    hear(mirrorFailed);
    await reconnect();
    await lookOnce();
    assert.deepEqual(told, ['vda: write: Input/output error']);
  });

  it('tells of a mirror that is lost again after it was opened again', async () => {
    await lookOnce();
    connection.destroy();
    await reconnect();
    await lookOnce();
    memory.of('vda').closed('mirror');
    memory.of('vda').opened('mirror');
    hear(mirrorFailed);
    assert.equal(told.length, 2, told.join());
  });
});

/** A running pair; an idle node has the name of the socket that was the mirror's at first. */
function pairOver(socket: string): Answers {
  const pair = captured('pair');
  const name = `cdp-vda-socket-${socket}`;
  const graph = pair['x-debug-query-block-graph'] as { nodes: object[]; edges: object[] };
  const nodes = pair['query-named-block-nodes'] as object[];
  const answers = answersOf({
    ...pair,
    'query-status': { running: true, status: 'running' },
    'query-named-block-nodes': [
      ...nodes,
      { 'node-name': name, drv: 'null-co', file: '', image: { 'virtual-size': 0 } },
    ],
    'x-debug-query-block-graph': { ...graph, nodes: [...graph.nodes, { name, type: 'block-driver', id: 99 }] },
  });
  return { ...answers, 'query-blockstats': () => [] };
}

describe("a look at a disk's error policy", () => {
  async function lookAt(
    errorPolicy: string,
    parts: Parameters<typeof look>[1] & { restoreOwed?: DomainRecord['restoreOwed'] } = {},
  ): Promise<Observation> {
    const domain = await WiredDomain.run(
      { ...answersOf(captured('plain')), 'query-blockstats': () => [] },
      { errorPolicy },
    );
    const { restoreOwed = null } = parts;
    try {
      const domainRecord = { ...look({ record: record.onlyPrimary }, parts).record, restoreOwed };
      const settings = { engine: 'auto', maxBytesPerS: 0 } as const;
      return await observe(domain.live, domainRecord, new DomainMemory(), settings, () => undefined);
    } finally {
      await domain.close();
    }
  }

  it('finds one that pauses the guest, for the quorum', async () => {
    const [disk] = (await lookAt('stop')).disks;
    assert.deepEqual([disk?.engine, disk?.withoutStopPolicy, disk?.obstacle], ['quorum', null, null]);
  });

  it('finds one that tells the guest, for a mirror job, and what that lacks', async () => {
    const [disk] = (await lookAt('report')).disks;
    assert.deepEqual([disk?.engine, disk?.obstacle], ['mirror', null]);
    assert.match(
      disk?.withoutStopPolicy ?? '',
      /is told to the guest.*virt-cdp protect web1 --disk vda --stop-policy-by/,
    );
  });

  it('lets nothing be armed that tells the guest of what failed as done, nor one with policy strict', async () => {
    for (const { disks } of [await lookAt('ignore'), await lookAt('report', { policy: 'strict' })])
      assert.match(disks[0]?.obstacle ?? '', /runs without error_policy='stop'/);
  });

  it('keeps block jobs away from a save that is ours, until that has failed', async () => {
    const restoreOwed = { failed: null, suspended: false, disks: [] };
    assert.equal((await lookAt('report', { restoreOwed })).migrating, true);
    assert.equal((await lookAt('report', { restoreOwed: { ...restoreOwed, failed: 'no space' } })).migrating, false);
  });
});

describe('the pace of a sync, as a look finds it', () => {
  const stats = { wr_operations: 50, wr_total_time_ns: 1e8 };
  const running = { running: true, status: 'running' };
  const settings = { engine: 'auto', maxBytesPerS: 0 } as const;
  let memory: DomainMemory;
  let domain: WiredDomain;

  async function runs(graph: string, status = running): Promise<void> {
    memory = new DomainMemory();
    domain = await WiredDomain.run({
      ...answersOf(captured(graph)),
      'query-status': () => status,
      'query-blockstats': () => [{ qdev: '/machine/peripheral/virtio-disk0/virtio-backend', stats }],
    });
  }

  afterEach(() => domain.close());

  async function paceSeen(): Promise<number | undefined> {
    const domainRecord = look({ record: record.onlyPrimary }).record;
    const { disks } = await observe(domain.live, domainRecord, memory, settings, () => undefined);
    return disks[0]?.pace.bytesPerS;
  }

  it('is not limited by a guest that stands still, and is afterwards what it was', async () => {
    const status = { ...running };
    await runs('plain', status);
    const first = await paceSeen();
    assert.ok(first !== undefined && first > 0, `${first}`);
    Object.assign(status, { running: false, status: 'paused' });
    assert.equal(await paceSeen(), 0);
    Object.assign(status, running);
    assert.equal(await paceSeen(), first);
    assert.equal(memory.of('vda').pace.calmNs, 2e6);
  });

  for (const [graph, waits] of Object.entries({ 'full-sync': false, delta: true, 'layered-with-copy': true }))
    it(`knows whether the guest's writes wait for the target: ${graph}`, async () => {
      await runs(graph);
      await paceSeen();
      const { mark } = memory.of('vda').pace;
      assert.notEqual(mark?.syncedBytes, null);
      assert.equal(mark?.waitForTarget, waits);
    });
});
