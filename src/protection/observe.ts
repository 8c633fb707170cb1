import type { DomainDisk } from '../domain/domain.ts';
import { hasStopPolicy, ignoresErrors } from '../domain/domain.ts';
import { wouldBeInClear } from '../domain/encryption.ts';
import type { Image } from '../domain/image.ts';
import type { Config } from '../config/config.ts';
import type { Engine } from '../graph/engine.ts';
import { diskNames, epochStart } from '../graph/names.ts';
import { viewGraph, type DiskGraph, type GraphView, type Pair } from '../graph/view.ts';
import { pausedReason } from '../libvirt/constants.ts';
import type { BlockStats } from '../qmp/commands.ts';
import type { Monitor } from '../qmp/monitor.ts';
import { imageName } from '../storage/image.ts';
import { nextPace, withinLimit } from '../sync/pace.ts';
import { reconnectedText, seesReconnected, socketsOf } from './connection.ts';
import { namesOther } from './definitions/compare.ts';
import type { DiskMemory } from './disk-memory.ts';
import type { DomainMemory } from './domain-memory.ts';
import { copiesInUse } from './hangs/copies-in-use.ts';
import type { LiveDomain } from './live-domain.ts';
import type { DiskObservation, Health, Observation, RunView } from './observation.ts';
import type { Side } from './model.ts';
import type { DiskRecord, DomainRecord } from './record.ts';
import { relaxedRemark, strictNeedsQuorum, wayToStopPolicy } from './stop-policy.ts';

/** How long one epoch records before the next begins: what a mirror's server may still lose is at most two epochs' writes. */
const epochMs = 10 * 60_000;

/** What the administrator wants at the moment. */
export interface SyncSettings {
  engine: Config['engine'];
  /** 0 is unlimited. */
  maxBytesPerS: number;
}

/**
 * One look at a running domain: QEMU's graph, libvirt's view, and what is remembered. Which disks stopped the guest is known from
 * events. Where none came, a device's io-status has to do, though QEMU never resets it for a device without a named backend
 * (QEMU, monitor/qmp-cmds.c: qmp_cont). `lost` is told of a mirror whose connection is found to be another than at first.
 */
export async function observe(
  live: LiveDomain,
  record: DomainRecord,
  domainMemory: DomainMemory,
  settings: SyncSettings,
  lost: (dev: string, why: string) => void,
): Promise<Observation> {
  // Before QEMU is asked: one that answers afterwards has not been closing its connections because it ends.
  const sockets = socketsOf(
    live,
    record.disks.map(({ dev }) => dev),
  );
  const [view, reason, knownDisks, persistentDisks] = await Promise.all([
    viewGraph(live.monitor),
    live.pausedReason(),
    live.disks(),
    live.persistentDisks(),
  ]);
  const outdated = record.disks.some(({ dev }) => {
    const known = knownDisks.find((disk) => disk.dev === dev);
    // It may have been plugged in while nobody listened.
    return known === undefined || isOutdated(view, known);
  });
  if (outdated) live.forgetDisks();
  const liveDisks = outdated ? await live.disks() : knownDisks;
  const run = runView(view, reason);
  domainMemory.isStopped = run !== 'running';
  const byDefault: Engine = settings.engine === 'mirror' || !(await live.hasQuorum()) ? 'mirror' : 'quorum';
  const stats = run === 'running' ? await live.monitor.execute('query-blockstats', {}) : null;
  const disks = await Promise.all(
    record.disks.map(async (disk): Promise<DiskObservation> => {
      const { dev } = disk;
      const liveDisk = liveDisks.find((other) => other.dev === dev);
      const graph =
        liveDisk?.alias == null
          ? null
          : withPath(view.disk(dev, liveDisk.alias, liveDisk.sourceIndex), disk.primary.image);
      const defined = persistentDisks.find((other) => other.dev === dev);
      const memory = domainMemory.of(dev);
      const hasPolicy = liveDisk === undefined || hasStopPolicy(liveDisk);
      const engine = graph?.pair?.engine ?? (hasPolicy ? byDefault : 'mirror');
      const reconnected =
        graph?.pair != null &&
        seesReconnected(live, dev, graph, disk.mirror.image, sockets, { running: run === 'running' });
      if (reconnected && !memory.isLost('mirror')) lost(dev, reconnectedText);
      memory.reconnected = reconnected;
      return {
        record: disk,
        graph,
        orphans: isOffItsPair(graph) ? view.orphans(dev) : [],
        ioThread: liveDisk?.ioThread ?? false,
        engine,
        withoutStopPolicy: hasPolicy ? null : relaxedRemark(record.name, dev, defined),
        liveImage: liveDisk?.image ?? null,
        obstacle:
          liveDisk === undefined ? null : (disk.contested ?? obstacleOf(record, disk, liveDisk, defined, engine)),
        xmlBehind: namesOther(disk, defined),
        ioFailed:
          run === 'io-error' &&
          !memory.ioErrorIsPast &&
          (domainMemory.failing.size > 0 ? domainMemory.failing.has(dev) : graph !== null && graph.ioStatus !== 'ok'),
        noSpace: memory.noSpace,
        health: healthOf(memory),
        primaryGone: memory.primaryGone,
        hang: memory.hang,
        silent: copiesInUse({ graph, record: disk, liveImage: liveDisk?.image ?? null }).filter((side) =>
          memory.isSilent(side),
        ),
        touched: (['primary', 'mirror'] as const).filter((side) => memory.touched[side]),
        atStop: memory.atStop,
        copyFailed: memory.copyFailed,
        mayRetry: memory.retryInMs === 0,
        deltaPasses: memory.deltaPasses,
        pace: pace(dev, memory, graph, stats, settings.maxBytesPerS),
        verify: memory.verification?.view ?? { is: 'none' },
        epochs: graph?.pair
          ? await viewEpochs(live.monitor, graph, graph.pair, memory)
          : { rotate: false, flushed: [] },
      };
    }),
  );
  return {
    now: new Date().toISOString(),
    run,
    instance: live.instance,
    migrating: view.migrating || record.restoreOwed?.failed === null,
    leaving: view.migrating && (await live.isLeaving()),
    surgeryMarked: view.surgeryMarked,
    record,
    disks,
  };
}

/** Of a mirror that has another connection nothing better is known than that it may lack something. */
function healthOf({ health, reconnected }: DiskMemory): Record<Side, Health> {
  if (!reconnected || health.mirror.is === 'failed') return health;
  return { ...health, mirror: { is: 'failed', why: reconnectedText, noSpace: false } };
}

/** QEMU knows no path of what it was handed open: the primary, where it was opened again for a return to it. */
function withPath(graph: DiskGraph | null, image: Image): DiskGraph | null {
  if (graph?.primary == null) return graph;
  const images = graph.primary.images.map((name) => (name.startsWith('/dev/fdset/') ? imageName(image) : name));
  return { ...graph, primary: { ...graph.primary, images } };
}

/** Of the sync that runs or may be begun; a guest that stands still is slowed by nothing. */
function pace(
  dev: string,
  memory: DiskMemory,
  graph: DiskGraph | null,
  stats: BlockStats[] | null,
  mostBytesPerS: number,
): DiskObservation['pace'] {
  const counted = stats?.find(({ qdev }) => qdev === graph?.qdev)?.stats;
  if (counted === undefined) {
    memory.pace = withinLimit(memory.pace, mostBytesPerS);
    return { bytesPerS: mostBytesPerS, mostBytesPerS };
  }
  const job = graph?.syncJob ?? graph?.otherJob ?? null;
  const seen = {
    atMs: performance.now(),
    writes: counted.wr_operations,
    waitedNs: counted.wr_total_time_ns,
    syncedBytes: job?.offset ?? null,
    // A full sync alone lets the guest's writes be (startFullSync).
    waitForTarget: job !== null && !(job.type === 'mirror' && job.device === diskNames(dev).syncJob),
  };
  memory.pace = nextPace(memory.pace, seen, mostBytesPerS);
  return { bytesPerS: memory.pace.bytesPerS, mostBytesPerS };
}

/** Something about the disk's jobs is worth a look each second. */
export function isAtWork({ graph }: DiskObservation): boolean {
  return graph !== null && (graph.syncJob !== null || graph.otherJob !== null || graph.instant);
}

/** No surgery ends so: the disk was unplugged, and may have been plugged in again, before anybody looked. */
function isOffItsPair(graph: DiskGraph | null): boolean {
  return graph === null || (graph.layout === 'primary' && graph.pair !== null);
}

/**
 * libvirt tells nobody of an external snapshot; but then the disk's topmost image has another node than its XML said. Of a disk on the park
 * that can't be seen.
 */
function isOutdated(view: GraphView, { dev, alias, sourceIndex }: DomainDisk): boolean {
  const graph = alias === null ? null : view.disk(dev, alias, sourceIndex);
  const index = /^libvirt-(\d+)-/.exec(graph?.primary?.data ?? '')?.[1];
  return graph?.layout === 'parked' || (index !== undefined && Number(index) !== sourceIndex);
}

/** `defined` is the disk at the domain's next start. */
function obstacleOf(
  { name, policy }: DomainRecord,
  { mirror, unencryptedMirror }: DiskRecord,
  disk: DomainDisk,
  defined: DomainDisk | undefined,
  engine: Engine,
): string | null {
  if (disk.unsupported !== null) return disk.unsupported;
  if (!unencryptedMirror && disk.image !== null && wouldBeInClear(disk.image, mirror.image)) {
    return (
      `the disk is encrypted, and its mirror '${imageName(mirror.image)}' would hold it in clear: give it an encrypted one (virt-cdp ` +
      `unprotect and protect), or allow it in the declaration by <cdp:mirror unencrypted='yes'> (virsh edit ${name})`
    );
  }
  if (!hasStopPolicy(disk) && (policy === 'strict' || ignoresErrors(disk)))
    return `the domain runs without error_policy='stop' on this disk. ${wayToStopPolicy(name, disk.dev, defined)}`;
  return policy === 'strict' && engine === 'mirror' ? strictNeedsQuorum : null;
}

function runView({ running, runState, surgeryMarked }: GraphView, reason: number): RunView {
  if (running) return 'running';
  if (runState === 'io-error') return 'io-error';
  if (runState !== 'paused' && runState !== 'prelaunch') return 'hands-off';
  switch (reason) {
    case pausedReason.user:
    case pausedReason.fromSnapshot:
      return 'suspended';
    case pausedReason.ioError:
      return 'io-error';
    case pausedReason.unknown:
      return surgeryMarked ? 'surgery' : 'suspended';
    default:
      return 'hands-off';
  }
}

/**
 * Two finished flushes after an epoch began, one of them began after it did, because a node's flushes are serialised (QEMU,
 * block/io.c: bdrv_co_flush): then every copy has flushed what older epochs recorded. Through a mirror job no flush reaches the mirror.
 */
async function viewEpochs(
  monitor: Monitor,
  { qdev }: DiskGraph,
  { engine, epochs }: Pair,
  memory: DiskMemory,
): Promise<{ rotate: boolean; flushed: string[] }> {
  if (engine === 'mirror') return { rotate: epochs.length === 0, flushed: [] };
  const ordered = [...epochs].sort((a, b) => epochStart(a) - epochStart(b));
  const newest = ordered.at(-1);
  if (newest === undefined) return { rotate: true, flushed: [] };
  if (ordered.length === 1) return { rotate: Date.now() - epochStart(newest) > epochMs, flushed: [] };
  const stats = (await monitor.execute('query-blockstats', {})).find((device) => device.qdev === qdev);
  const flushes = stats?.stats.flush_operations ?? 0;
  const since = memory.epochFlushes.get(newest) ?? flushes;
  memory.epochFlushes.set(newest, since);
  return { rotate: false, flushed: flushes >= since + 2 ? ordered.slice(0, -1) : [] };
}
