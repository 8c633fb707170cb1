import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { request } from 'node:http';
import { createMetrics, type MetricSources } from '../../src/agent/metrics.ts';
import { listenForScrapes } from '../../src/agent/metrics-listener.ts';
import type { DomainStatus, ProtectionEvent } from '../../src/protection/model.ts';
import { diskWith, domainWith, eventWith, FakeAgent, noon, quietLog } from '../control/fake-agent.ts';

const minuteLater = Date.parse(noon) + 60_000;

describe('the metrics', () => {
  let domains: DomainStatus[];
  let tell: (event: ProtectionEvent) => void;
  let sources: MetricSources;
  beforeEach(() => {
    domains = [domainWith()];
    sources = {
      domains: () => Promise.resolve(domains),
      agent: () => ({ ...new FakeAgent().self, configProblem: 'line 1' }),
      overdueCalls: () => 3,
      brokenPolicyFiles: () => 2,
      backends: () => [
        { name: 'nbd:storage1:10809', answers: true, tookMs: 12.5 },
        { name: 'mount:/srv', answers: false, tookMs: 5000 },
        { name: 'mount:/new', answers: true, tookMs: null },
      ],
      followEvents: (listener) => {
        tell = listener;
        return () => undefined;
      },
    };
  });

  /** The lines of these metrics, without those of the process. */
  async function lines(metrics: { text(): Promise<string> }, like: RegExp): Promise<string[]> {
    return (await metrics.text()).split('\n').filter((line) => !line.startsWith('#') && like.test(line));
  }

  it('tell the state of each disk, and only the present one', async () => {
    const metrics = createMetrics(sources, () => minuteLater);
    const states = async (): Promise<string[]> =>
      (await lines(metrics, /_disk_state/)).filter((line) => line.endsWith(' 1'));
    assert.deepEqual(await states(), ['virt_cdp_disk_state{domain="web1",disk="vda",state="protected"} 1']);
    domains = [domainWith({ disks: [diskWith({ state: 'broken' })] })];
    assert.deepEqual(await states(), ['virt_cdp_disk_state{domain="web1",disk="vda",state="broken"} 1']);
    domains = [];
    assert.deepEqual(await lines(metrics, /_(disk|copy|job)_.*web1/), []);
  });

  it('tell how long, and by how much, a disk is exposed, its copies, and how its job gets on', async () => {
    domains = [
      domainWith({
        disks: [
          diskWith({
            state: 'syncing',
            exposedSince: noon,
            exposedBytes: 4096,
            job: { kind: 'delta-sync', done: 5, total: 9 },
            mirror: { source: '/m', current: false, reachable: null, consistentAsOf: null },
          }),
        ],
      }),
    ];
    const metrics = createMetrics(sources, () => minuteLater);
    const labels = 'domain="web1",disk="vda"';
    assert.deepEqual(await lines(metrics, /_(exposed|job|copy)_/), [
      `virt_cdp_copy_current{${labels},copy="primary"} 1`,
      `virt_cdp_copy_current{${labels},copy="mirror"} 0`,
      `virt_cdp_copy_reachable{${labels},copy="primary"} 1`,
      `virt_cdp_disk_exposed_seconds{${labels}} 60`,
      `virt_cdp_disk_exposed_bytes{${labels}} 4096`,
      `virt_cdp_job_done_bytes{${labels},kind="delta-sync"} 5`,
      `virt_cdp_job_total_bytes{${labels},kind="delta-sync"} 9`,
    ]);
  });

  it('tell how what the copies lie on answers, and how fast', async () => {
    assert.deepEqual(await lines(createMetrics(sources), /_backend_/), [
      'virt_cdp_backend_answers{backend="nbd:storage1:10809"} 1',
      'virt_cdp_backend_answers{backend="mount:/srv"} 0',
      'virt_cdp_backend_answers{backend="mount:/new"} 1',
      'virt_cdp_backend_probe_seconds{backend="nbd:storage1:10809"} 0.0125',
      'virt_cdp_backend_probe_seconds{backend="mount:/srv"} 5',
    ]);
  });

  it('count failovers and events, and how long guests were paused', async () => {
    const metrics = createMetrics(sources);
    assert.deepEqual(await lines(metrics, /failovers|events_total{event="failed-over"}|pause_seconds_count/), [
      'virt_cdp_events_total{event="failed-over"} 0',
      'virt_cdp_failovers_total{domain="web1",disk="vda"} 0',
      'virt_cdp_guest_pause_seconds_count{domain="web1",disk="vda"} 0',
    ]);
    tell(eventWith({ event: 'failed-over', detail: { pausedMs: 73 } }));
    tell(eventWith({ event: 'started', disk: null, from: null, to: null }));
    const told = await lines(metrics, /failovers|events_total{event="(failed-over|started)"}|pause/);
    const labels = 'domain="web1",disk="vda"';
    for (const line of [
      'virt_cdp_events_total{event="failed-over"} 1',
      'virt_cdp_events_total{event="started"} 1',
      `virt_cdp_failovers_total{${labels}} 1`,
      `virt_cdp_guest_pause_seconds_bucket{le="0.05",${labels}} 0`,
      `virt_cdp_guest_pause_seconds_bucket{le="0.1",${labels}} 1`,
      `virt_cdp_guest_pause_seconds_sum{${labels}} 0.073`,
    ])
      assert.ok(told.includes(line), `${line} is not among\n${told.join('\n')}`);
  });

  it("tell of the agent's own health", async () => {
    const metrics = createMetrics(sources);
    assert.deepEqual(await lines(metrics, /build_info|libvirt|config|policy_files/), [
      'virt_cdp_build_info{version="1.2.3",node="20.19.0"} 1',
      'virt_cdp_libvirt_connected 1',
      'virt_cdp_libvirt_overdue_calls 3',
      'virt_cdp_config_valid 0',
      'virt_cdp_policy_files_broken 2',
    ]);
    assert.equal((await lines(metrics, /^nodejs_eventloop_lag_seconds /)).length, 1);
    assert.deepEqual(await lines(metrics, /^nodejs_eventloop_lag_.*_seconds /), [], 'what is measured all the time');
  });

  it('keep names apart, whatever domains are called', async () => {
    domains = [domainWith({ domain: 'a"}\n\\b' })];
    const [line] = await lines(createMetrics(sources), /copy_current.*primary/);
    assert.equal(line, 'virt_cdp_copy_current{domain="a\\"}\\n\\\\b",disk="vda",copy="primary"} 1');
  });

  for (const file of ['prometheus/virt-cdp.rules.yml', 'grafana/virt-cdp.json']) {
    it(`are named rightly, and all states too, in packaging/${file}`, async () => {
      const metrics = createMetrics(sources);
      domains = [
        domainWith({
          disks: [diskWith({ exposedSince: noon, exposedBytes: 1, job: { kind: 'rebuild', done: 0, total: 1 } })],
        }),
      ];
      tell(eventWith({ event: 'failed-over', detail: { pausedMs: 1 } }));
      const known = new Set((await metrics.text()).match(/^[a-z_]+(?=[{ ])/gm));
      const text = readFileSync(`packaging/${file}`, 'utf8');
      const named = text.match(/\b(virt_cdp|nodejs|process)_[a-z_]+/g) ?? [];
      assert.ok(named.length > 5);
      assert.deepEqual(
        named.filter((name) => !known.has(name)),
        [],
      );
      const states = [...text.matchAll(/state=~?\\?"([a-z|-]+)/g)].flatMap(([, found]) => found?.split('|') ?? []);
      const all = (await lines(metrics, /_disk_state/)).map((line) => /state="([a-z-]+)"/.exec(line)?.[1]);
      assert.deepEqual(
        states.filter((state) => !all.includes(state)),
        [],
      );
      if (file.endsWith('.json')) JSON.parse(text);
    });
  }
});

describe('docs/monitoring.md', () => {
  it('names each metric, and no other', async () => {
    const metrics = createMetrics({
      domains: () => Promise.resolve([]),
      agent: () => new FakeAgent().self,
      overdueCalls: () => 0,
      brokenPolicyFiles: () => 0,
      backends: () => [],
      followEvents: () => () => undefined,
    });
    const known = new Set((await metrics.text()).match(/(?<=^# TYPE )virt_cdp_[a-z_]+/gm));
    const named = new Set(readFileSync('docs/monitoring.md', 'utf8').match(/(?<=`)virt_cdp_[a-z_]+(?=`)/g));
    assert.deepEqual([...named].sort(), [...known].sort());
  });
});

describe('metrics.listen', () => {
  const metrics = (): Promise<{ contentType: string; text: string }> =>
    Promise.resolve({ contentType: 'text/plain', text: 'virt_cdp_up 1\n' });

  function ask(port: number, method: string, path: string): Promise<[number | undefined, string]> {
    return new Promise((resolve, reject) => {
      const call = request({ host: '127.0.0.1', port, method, path }, (response) => {
        let text = '';
        response.on('data', (chunk: Buffer) => (text += chunk.toString()));
        response.on('end', () => resolve([response.statusCode, text]));
      });
      call.on('error', reject).end();
    });
  }

  it('serves the metrics, and nothing else', async () => {
    const log = quietLog(() => undefined);
    const listener = await listenForScrapes({ host: '127.0.0.1', port: 0 }, metrics, log);
    try {
      assert.deepEqual(await ask(listener.port, 'GET', '/metrics'), [200, 'virt_cdp_up 1\n']);
      for (const [method, path] of [
        ['GET', '/v1/domains'],
        ['POST', '/metrics'],
        ['POST', '/v1/domains/web1/failover'],
      ] as const)
        assert.equal((await ask(listener.port, method, path))[0], 404);
      await assert.rejects(listenForScrapes({ host: '127.0.0.1', port: listener.port }, metrics, log), {
        code: 'cannot-listen',
      });
    } finally {
      await listener.close();
    }
  });
});
