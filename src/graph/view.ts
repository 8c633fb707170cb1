import type { BlockDevice, BlockGraph, BlockJob, BlockNode } from '../qmp/commands.ts';
import type { Monitor } from '../qmp/monitor.ts';
import { connectionPrefix, diskNames, epochPrefix, instantNames, surgeryMark, trackPrefix } from './names.ts';
import { isInSync, isWell, type Engine } from './engine.ts';
import { describeNodes } from './describe-nodes.ts';
import { NodeGraph } from './node-graph.ts';

/** What lies under a disk's device. */
export type Layout =
  /** libvirt's own node, with or without a job's filter on it. */
  | 'primary'
  /** The two-copy writer over both copies. */
  | 'pair'
  /** The mirror's node. */
  | 'mirror'
  /** Raw layers under libvirt's names over the mirror's node: libvirt's own jobs work on them. */
  | 'layered'
  /** The park: every I/O fails. */
  | 'parked';

export interface Pair {
  engine: Engine;
  primaryChild: string;
  epochs: string[];
  /** The mirror has every write that was acknowledged through the pair, as far as QEMU knows. */
  inSync: boolean;
  /** Its job copies what the mirror lacks, and nothing has failed. */
  copying: boolean;
}

export interface TrackBitmap {
  name: string;
  on: 'primary' | 'mirror';
  /** Bytes. */
  dirtyBytes: number;
}

/** A disk's block graph, read at one moment. */
export interface DiskGraph {
  /** QOM path of the device, for qom-set. */
  qdev: string;
  /** The node under the device. */
  root: string;
  sizeBytes: number;
  ioStatus: 'ok' | 'failed' | 'nospace';
  layout: Layout;
  /** libvirt's nodes for the disk, wherever they hang; null when they are gone. */
  primary: PrimaryNodes | null;
  /** The mirror's own node is open. */
  mirrorOpen: boolean;
  /** The sockets of the connections on the way to the mirror when that was opened, as the kernel calls them: those that were noted. */
  mirrorSockets: string[];
  /** The two-copy writer exists, under the device or not. */
  pair: Pair | null;
  parkReady: boolean;
  /** Layers over the mirror's node under libvirt's names, topmost first, with the filter of a job that runs on them. */
  layers: string[];
  tracking: TrackBitmap[];
  /** Our job that brings a copy up to date; of a pair, the one that makes it. */
  syncJob: BlockJob | null;
  /** Somebody else's block job on this disk: libvirt's copy during a rebuild, or a stranger's. */
  otherJob: BlockJob | null;
  /** Something of an instant of both copies is there; the other parts of this view are as if it were not. */
  instant: boolean;
}

export interface PrimaryNodes {
  /** What a device or the two-copy writer is given as its child. */
  top: string;
  /** The first node below filters: bitmaps live here. */
  data: string;
  /** All of libvirt's nodes of this copy, topmost first, backing files included. */
  chain: string[];
  /** What QEMU calls the images of the chain: a path or a URI each. */
  images: string[];
}

/** Everything that is read from QEMU for one look at a domain. */
export interface GraphView {
  running: boolean;
  /** qapi/run-state.json: RunState. */
  runState: string;
  /** A save, a dump or a migration is under way. */
  migrating: boolean;
  /** The mark of a surgery of ours exists. */
  surgeryMarked: boolean;
  disk(dev: string, alias: string, sourceIndex: number | null): DiskGraph | null;
  /** Our nodes for a disk whose device is gone or was plugged anew, and what they and our job hold open, topmost first. */
  orphans(dev: string): string[];
}

/**
 * Reads the graph and what belongs to it. The answers are of different moments, and a graph torn between two of them could show
 * a disk on a node that it has just left: whatever disagrees is read again.
 * @throws Error when the graph does not stand still.
 */
export async function viewGraph(monitor: Monitor): Promise<GraphView> {
  for (let tries = 1; tries <= maxTries; tries++) {
    const devices = await monitor.execute('query-block', {});
    const graph = await monitor.execute('x-debug-query-block-graph', {});
    const nodes = await describeNodes(monitor, graph, devices);
    const jobs = await monitor.execute('query-block-jobs', {});
    const migration = await monitor.execute('query-migrate', {});
    const status = await monitor.execute('query-status', {});
    if (agree(graph, nodes, jobs)) return graphView(status, migration, devices, nodes, jobs, graph);
  }
  throw new Error(`the block graph changed during each of ${maxTries} looks`);
}

const maxTries = 10;

/** Of qapi/migration.json: MigrationStatus. */
const migrationEnds = ['none', 'completed', 'failed', 'cancelled'];

/** The graph names the same nodes and jobs as the lists. */
function agree(graph: BlockGraph, nodes: BlockNode[], jobs: BlockJob[]): boolean {
  const named = (type: BlockGraph['nodes'][number]['type']): string =>
    JSON.stringify(graph.nodes.flatMap((node) => (node.type === type ? node.name : [])).sort());
  return (
    named('block-driver') === JSON.stringify(nodes.map((node) => node['node-name'] ?? '').sort()) &&
    named('block-job') === JSON.stringify(jobs.map(({ device }) => device).sort())
  );
}

function graphView(
  status: { running: boolean; status: string },
  migration: { status?: string },
  devices: BlockDevice[],
  nodes: BlockNode[],
  jobs: BlockJob[],
  graph: BlockGraph,
): GraphView {
  const nodeGraph = new NodeGraph(graph, nodes);
  return {
    running: status.running,
    runState: status.status,
    migrating: migration.status !== undefined && !migrationEnds.includes(migration.status),
    surgeryMarked: nodeGraph.has(surgeryMark),
    disk: (dev, alias, sourceIndex) => {
      const device = devices.find(({ qdev }) => qdev === alias || qdev?.includes(`/${alias}/`));
      return device ? viewDisk(nodeGraph, jobs, device, dev, sourceIndex) : null;
    },
    orphans: (dev) => {
      const { pair, syncJob, mirror, park, nothing, slice, sink } = diskNames(dev);
      const layers = nodeGraph.has(mirror) ? nodeGraph.topsAbove(mirror) : [];
      const tops = [...layers, syncJob, pair, mirror, park, nothing].filter((name) => nodeGraph.has(name));
      const idle = [slice, sink].filter((name) => nodeGraph.has(name)).concat(nodeGraph.named(connectionPrefix(dev)));
      return [...new Set([...idle, ...tops.flatMap((name) => nodeGraph.below(name))])];
    },
  };
}

function viewDisk(
  graph: NodeGraph,
  jobs: BlockJob[],
  device: BlockDevice,
  dev: string,
  sourceIndex: number | null,
): DiskGraph | null {
  const names = diskNames(dev);
  const root = device.qdev === undefined ? undefined : graph.rootOf(device.qdev);
  if (device.qdev === undefined || device.inserted === undefined || root === undefined) return null;
  const libvirtTop = [`libvirt-${sourceIndex}-format`, `libvirt-${sourceIndex}-storage`].find((name) =>
    graph.has(name),
  );
  const libvirtDescent = libvirtTop === undefined ? [] : graph.descent(graph.topAbove(libvirtTop));
  const layers = libvirtDescent.slice(0, Math.max(0, libvirtDescent.indexOf(names.mirror)));
  const layout = layoutOf(graph, root, names.pair, names.mirror, names.park);
  const instant = instantNames(dev);
  const primaryChild = graph
    .children(names.pair)
    .map((child) => graph.without(instant.mirror.job, graph.without(instant.primary.job, child)))
    .find((child) => child !== names.mirror);
  const primaryTop =
    primaryChild ??
    (layout === 'primary'
      ? graph.without(names.syncJob, root)
      : libvirtTop !== undefined && layers.length === 0
        ? graph.topAbove(libvirtTop)
        : undefined);
  const primary = primaryTop === undefined ? null : primaryNodes(graph, primaryTop);
  const jobNames = graph.jobsOn([root, ...(primary?.chain ?? []), ...layers]);
  const ownJobs = [
    names.syncJob,
    names.flushJob,
    names.readJob,
    names.pairJob,
    instant.primary.job,
    instant.mirror.job,
  ];
  return {
    qdev: device.qdev,
    root,
    sizeBytes: device.inserted.image['virtual-size'],
    ioStatus: device['io-status'] ?? 'ok',
    layout,
    primary,
    mirrorOpen: graph.has(names.mirror),
    mirrorSockets: graph.named(connectionPrefix(dev)).map((name) => name.slice(connectionPrefix(dev).length)),
    pair: primaryChild === undefined ? null : viewPair(graph, jobs, dev, primaryChild),
    parkReady: graph.has(names.park),
    layers,
    tracking: [
      ...(primary
        ? graph.bitmaps(primary.data, trackPrefix).map((bitmap) => ({ ...bitmap, on: 'primary' as const }))
        : []),
      ...graph.bitmaps(names.mirror, trackPrefix).map((bitmap) => ({ ...bitmap, on: 'mirror' as const })),
    ],
    syncJob:
      jobs.find(({ device }) => device === names.syncJob) ??
      jobs.find(({ device, ready }) => device === names.pairJob && !ready && layout === 'pair') ??
      null,
    otherJob: jobs.find(({ device }) => !ownJobs.includes(device) && jobNames.includes(device)) ?? null,
    instant:
      [instant.primary.overlayFile, instant.mirror.overlayFile, instant.marks].some((name) => graph.has(name)) ||
      (primary !== null && graph.hasBitmap(primary.data, instant.bitmapPrefix)),
  };
}

function viewPair(graph: NodeGraph, jobs: BlockJob[], dev: string, primaryChild: string): Pair {
  const { pair, pairJob } = diskNames(dev);
  const isJob = graph.isFilter(pair);
  const job = jobs.find(({ device }) => device === pairJob);
  return {
    engine: isJob ? 'mirror' : 'quorum',
    primaryChild,
    epochs: graph.bitmaps(pair, epochPrefix).map(({ name }) => name),
    inSync: !isJob || isInSync(job),
    copying: job !== undefined && isWell(job) && !isInSync(job),
  };
}

function layoutOf(graph: NodeGraph, root: string, pair: string, mirror: string, park: string): Layout {
  if (root === park) return 'parked';
  const [top] = graph.descent(root).filter((name) => name === pair || !graph.isFilter(name));
  if (top === pair) return 'pair';
  if (top === mirror) return 'mirror';
  return graph.descent(root).includes(mirror) ? 'layered' : 'primary';
}

function primaryNodes(graph: NodeGraph, top: string): PrimaryNodes {
  const descent = graph.descent(top);
  const chain = graph.chain(top);
  return {
    top,
    data: descent.find((name) => !graph.isFilter(name)) ?? top,
    chain,
    images: chain.map((name) => graph.imageOf(name)),
  };
}
