import { collectDefaultMetrics, Counter, Gauge, Histogram, Registry } from 'prom-client';
import type { AgentReport } from '../control/api.ts';
import type { BackendReport } from '../health/backends.ts';
import {
  diskStates,
  eventNames,
  type DiskStatus,
  type DomainStatus,
  type ProtectionEvent,
} from '../protection/model.ts';

/** Where the figures come from. */
export interface MetricSources {
  /** The protected domains. */
  domains(): Promise<DomainStatus[]>;
  agent(): AgentReport;
  /** Calls to libvirt past their deadline that it still works on. */
  overdueCalls(): number;
  /** What the copies in use lie on. */
  backends(): BackendReport[];
  /** Policy files that can't be used. */
  brokenPolicyFiles(): number;
  followEvents(listener: (event: ProtectionEvent) => void): () => void;
}

/** The agent's metrics in the text format of Prometheus. */
export interface Metrics {
  contentType: string;
  /** As things are now. */
  text(): Promise<string>;
}

/** Guests stand still for some tens of milliseconds, if all is well. */
const pauseBuckets = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30];

const perDisk = ['domain', 'disk'] as const;

/** What is counted, is counted since the agent's start. */
export function createMetrics(sources: MetricSources, nowMs: () => number = Date.now): Metrics {
  const registry = new Registry();
  const registers = [registry];
  const gauge = <L extends string>(name: string, help: string, labelNames: readonly L[]): Gauge<L> =>
    new Gauge({ name: `virt_cdp_${name}`, help, labelNames, registers });
  const counter = <L extends string>(name: string, help: string, labelNames: readonly L[]): Counter<L> =>
    new Counter({ name: `virt_cdp_${name}`, help, labelNames, registers });

  const info = gauge('build_info', 'The running agent; always 1', ['version', 'node']);
  const libvirt = gauge('libvirt_connected', 'Whether libvirt answers the agent', []);
  const overdue = gauge('libvirt_overdue_calls', 'Calls to libvirt past their deadline that it still works on', []);
  const config = gauge('config_valid', 'Whether the configuration file, as it is now, is in force', []);
  const policies = gauge('policy_files_broken', 'Policy files that can not be used', []);
  const unreadable = gauge(
    'records_unreadable',
    'Domains that are not served, because their records can not be read',
    [],
  );
  const state = gauge('disk_state', 'Whether a protected disk is in this state', [...perDisk, 'state']);
  const current = gauge('copy_current', 'Whether a copy holds every acknowledged write', [...perDisk, 'copy']);
  const reachable = gauge('copy_reachable', 'Whether a copy answered when it was last used or asked', [
    ...perDisk,
    'copy',
  ]);
  const exposed = gauge(
    'disk_exposed_seconds',
    'For how long a disk has had one current copy; 0 if it has two',
    perDisk,
  );
  const dirty = gauge('disk_exposed_bytes', 'What the other copy lacks, where that is known', perDisk);
  const done = gauge('job_done_bytes', 'How far a sync or a rebuild is', [...perDisk, 'kind']);
  const total = gauge('job_total_bytes', 'How much a sync or a rebuild has to copy', [...perDisk, 'kind']);
  const answers = gauge('backend_answers', 'Whether a server, device or file system that copies lie on answers', [
    'backend',
  ]);
  const probe = gauge('backend_probe_seconds', 'How long its last answer took, or has been waited for', ['backend']);
  const momentary = [answers, probe, state, current, reachable, exposed, dirty, done, total];

  const events = counter('events_total', 'Events, by kind', ['event']);
  const failovers = counter('failovers_total', 'How often a disk went to run on its mirror alone', perDisk);
  const pauses = new Histogram({
    name: 'virt_cdp_guest_pause_seconds',
    help: 'How long guests stood still when a disk changed its state',
    labelNames: perDisk,
    buckets: pauseBuckets,
    registers,
  });
  registerProcess(registry);
  for (const event of eventNames) events.inc({ event }, 0);

  /** Disks whose counts have begun: Prometheus sees no increase in what begins at 1. */
  const counted = new Set<string>();

  function beginCounts(labels: Record<(typeof perDisk)[number], string>): void {
    const key = JSON.stringify(labels);
    if (counted.has(key)) return;
    counted.add(key);
    failovers.inc(labels, 0);
    pauses.zero(labels);
  }

  sources.followEvents(({ domain, disk, event, detail }) => {
    events.inc({ event });
    if (disk === null) return;
    const labels = { domain, disk };
    beginCounts(labels);
    if (event === 'failed-over') failovers.inc(labels);
    const { pausedMs } = detail;
    if (typeof pausedMs === 'number') pauses.observe(labels, pausedMs / 1000);
  });

  function showDisk(domain: string, status: DiskStatus): void {
    const labels = { domain, disk: status.dev };
    beginCounts(labels);
    for (const one of diskStates) state.set({ ...labels, state: one }, Number(status.state === one));
    for (const copy of ['primary', 'mirror'] as const) {
      current.set({ ...labels, copy }, Number(status[copy].current));
      if (status[copy].reachable !== null) reachable.set({ ...labels, copy }, Number(status[copy].reachable));
    }
    const since = status.exposedSince;
    exposed.set(labels, since === null ? 0 : Math.max(0, nowMs() - Date.parse(since)) / 1000);
    if (since === null || status.exposedBytes !== null) dirty.set(labels, status.exposedBytes ?? 0);
    if (status.job === null) return;
    done.set({ ...labels, kind: status.job.kind }, status.job.done);
    total.set({ ...labels, kind: status.job.kind }, status.job.total);
  }

  return {
    contentType: registry.contentType,
    async text() {
      const domains = await sources.domains();
      const { version, node, libvirtConnected, configProblem } = sources.agent();
      info.set({ version, node }, 1);
      libvirt.set(Number(libvirtConnected));
      overdue.set(sources.overdueCalls());
      config.set(Number(configProblem === null));
      policies.set(sources.brokenPolicyFiles());
      unreadable.set(domains.filter(({ problem }) => problem !== undefined).length);
      for (const metric of momentary) metric.reset();
      for (const { name, answers: does, tookMs } of sources.backends()) {
        answers.set({ backend: name }, Number(does));
        if (tookMs !== null) probe.set({ backend: name }, tookMs / 1000);
      }
      for (const { domain, disks } of domains) for (const disk of disks) showDisk(domain, disk);
      return registry.metrics();
    },
  };
}

const hourMs = 3_600_000;

/**
 * The usual metrics of a Node process, without those of the event loop's delays: prom-client measures them by waking the process a
 * hundred times a second, which alone took 0.6 % of a core. The lag of the moment is measured when it is asked for.
 */
function registerProcess(registry: Registry): void {
  collectDefaultMetrics({ register: registry, eventLoopMonitoringPrecision: hourMs });
  for (const statistic of ['min', 'max', 'mean', 'stddev', 'p50', 'p90', 'p99'])
    registry.removeSingleMetric(`nodejs_eventloop_lag_${statistic}_seconds`);
}
