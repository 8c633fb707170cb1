import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createMetrics, type MetricSources } from '../../src/agent/metrics.ts';
import type { DiskState, ProtectionEvent } from '../../src/protection/model.ts';
import { diskWith, domainWith, eventWith, FakeAgent, noon } from '../control/fake-agent.ts';
import { must } from '../lab/run.ts';
import { promtool } from './promtool.ts';

const checkout = join(import.meta.dirname, '../..');
const rules = join(checkout, 'packaging/prometheus/virt-cdp.rules.yml');

/** What the agent tells of a host on which all is well. */
const well: MetricSources = {
  domains: () => Promise.resolve([domainWith({ disks: [diskWith()] })]),
  agent: () => new FakeAgent().self,
  overdueCalls: () => 0,
  brokenPolicyFiles: () => 0,
  backends: () => [{ name: 'nbd:storage1:10809', answers: true, tookMs: 2 }],
  followEvents: () => () => undefined,
};

const inState = (state: DiskState, more: Parameters<typeof diskWith>[0] = {}): Partial<MetricSources> => ({
  domains: () => Promise.resolve([domainWith({ disks: [diskWith({ state, ...more })] })]),
});

const hours = (count: number): number => Date.parse(noon) + count * 3_600_000;

interface Fault {
  what: string;
  sources?: Partial<MetricSources>;
  /** Told after ten minutes. */
  event?: Partial<ProtectionEvent>;
  nowMs?: number;
  up?: 0 | 1;
  fires: string[];
}

const agent = (more: object): Partial<MetricSources> => ({ agent: () => ({ ...new FakeAgent().self, ...more }) });

const faults: Fault[] = [
  { what: 'nothing', fires: [] },
  { what: 'a stop', event: { event: 'failed-over', detail: { pausedMs: 80 } }, fires: [] },
  { what: 'a broken disk', sources: inState('broken'), fires: ['VirtCdpBroken'] },
  { what: 'a failed over disk', sources: inState('failed-over'), fires: ['VirtCdpFailedOver'] },
  { what: 'an exposed disk', sources: inState('exposed'), fires: ['VirtCdpExposed'] },
  { what: 'a disk that waits', sources: inState('waiting'), fires: ['VirtCdpNotProtected'] },
  { what: 'a disk that is held', sources: inState('held'), fires: ['VirtCdpNotProtected'] },
  {
    what: 'one copy for two hours',
    sources: inState('syncing', { exposedSince: noon }),
    nowMs: hours(2),
    fires: ['VirtCdpOneCopyForLong'],
  },
  {
    what: 'a job that stands still',
    sources: inState('rebuilding', { job: { kind: 'rebuild', done: 1, total: 2 } }),
    fires: ['VirtCdpJobStuck'],
  },
  {
    what: 'a pause of two seconds',
    event: { event: 'armed', detail: { pausedMs: 2000 } },
    fires: ['VirtCdpLongPause'],
  },
  {
    what: 'a mirror that does not answer',
    sources: inState('protected', { mirror: { ...diskWith().mirror, reachable: false } }),
    fires: ['VirtCdpCopyUnreachable'],
  },
  {
    what: 'a server that does not answer',
    sources: { backends: () => [{ name: 'nbd:storage1:10809', answers: false, tookMs: null }] },
    fires: ['VirtCdpStorageSilent'],
  },
  {
    what: 'a server that takes its time',
    sources: { backends: () => [{ name: 'nbd:storage1:10809', answers: true, tookMs: 1500 }] },
    fires: ['VirtCdpStorageSlow'],
  },
  { what: 'no agent', up: 0, fires: ['VirtCdpAgentDown'] },
  { what: 'no libvirt', sources: agent({ libvirtConnected: false }), fires: ['VirtCdpWithoutLibvirt'] },
  { what: 'a broken configuration', sources: agent({ configProblem: 'line 1' }), fires: ['VirtCdpConfiguration'] },
  { what: 'a broken policy file', sources: { brokenPolicyFiles: () => 1 }, fires: ['VirtCdpConfiguration'] },
  {
    what: 'a record that can not be read',
    sources: { domains: () => Promise.resolve([domainWith({ disks: [], problem: 'its record is broken' })]) },
    fires: ['VirtCdpRecordUnreadable'],
  },
  {
    what: 'a record that was not written in time',
    event: { event: 'record-not-durable', disk: null, detail: {} },
    fires: ['VirtCdpRecordNotDurable'],
  },
];

describe('the alert rules', function () {
  this.timeout(180_000);
  let folder: string;
  let tool: string;

  before(async () => {
    folder = await mkdtemp(join(tmpdir(), 'virt-cdp-rules-'));
    tool = await promtool();
  });
  after(() => rm(folder, { recursive: true }));

  it("are rules to Prometheus's own checker, and fire each for its fault and no other, by what the agent tells then", async () => {
    assert.match(await must(tool, 'check', 'rules', rules), /SUCCESS/);
    const file = join(folder, 'tests.yml');
    // YAML, as JSON is.
    await writeFile(file, JSON.stringify({ rule_files: [rules], tests: await Promise.all(faults.map(asTest)) }));
    await must(tool, 'test', 'rules', file);
  });

  it('have a fault here, each', async () => {
    const all = [...(await readFile(rules, 'utf8')).matchAll(/alert: (\w+)/g)].map(([, name = '']) => name);
    const tried = faults.flatMap(({ fires }) => fires);
    assert.deepEqual(
      all.filter((name) => !tried.includes(name)),
      [],
    );
  });

  it('are fed as docs/monitoring.md tells Prometheus to', async () => {
    const page = await readFile(join(checkout, 'docs/monitoring.md'), 'utf8');
    const [, config = ''] = /^```yaml\n([^]*?)^```/m.exec(page) ?? [];
    await writeFile(join(folder, 'prometheus.yml'), config.replace(/\/\S*\/virt-cdp\.rules\.yml/, rules));
    assert.match(await must(tool, 'check', 'config', join(folder, 'prometheus.yml')), /1 rule files found/);
    assert.match(config, /job_name: virt-cdp$/m, 'the job that the rule of an agent that is down asks for');
  });

  it('and the dashboard asks what Prometheus understands', async () => {
    const { panels } = JSON.parse(await readFile(join(checkout, 'packaging/grafana/virt-cdp.json'), 'utf8')) as {
      panels: { targets?: { expr: string }[] }[];
    };
    const asked = panels.flatMap(({ targets = [] }) => targets.map(({ expr }) => expr));
    assert.ok(asked.length > 5);
    const file = join(folder, 'dashboard.yml');
    const asRules = asked.map((expr, n) => ({ record: `panel_${n}`, expr }));
    await writeFile(file, JSON.stringify({ groups: [{ name: 'dashboard', rules: asRules }] }));
    assert.match(await must(tool, 'check', 'rules', file), new RegExp(`${asked.length} rules found`));
  });
});

/** The series of half an hour: all as the agent tells it, but ten minutes without what the event changes. */
async function asTest({ what, sources = {}, event, nowMs = hours(0), up = 1, fires }: Fault): Promise<object> {
  let tell: (event: ProtectionEvent) => void = () => undefined;
  const metrics = createMetrics(
    {
      ...well,
      ...sources,
      followEvents: (listener) => {
        tell = listener;
        return () => undefined;
      },
    },
    () => nowMs,
  );
  const before = samples(await metrics.text());
  if (event !== undefined) tell(eventWith(event));
  const after = samples(await metrics.text());
  const told = [...after].map(([series, value]) => ({
    series,
    values: `${before.get(series) ?? '_'}x10 ${value}x20`,
  }));
  return {
    name: what,
    interval: '1m',
    input_series: [{ series: 'up{job="virt-cdp",instance="host1"}', values: `${up}x40` }, ...(up === 1 ? told : [])],
    promql_expr_test: [
      {
        expr: 'count by (alertname) (ALERTS{alertstate="firing"})',
        eval_time: '20m',
        exp_samples: fires.map((name) => ({ labels: `{alertname="${name}"}`, value: 1 })),
      },
    ],
  };
}

/** Of virt-cdp's own, without those of the process. */
function samples(text: string): Map<string, string> {
  const lines = text.split('\n').filter((line) => line.startsWith('virt_cdp_'));
  return new Map(lines.map((line) => [line.slice(0, line.lastIndexOf(' ')), line.slice(line.lastIndexOf(' ') + 1)]));
}
