import type { BlockDevice, BlockGraph, BlockJob, BlockNode } from '../qmp/commands.ts';
import type { Monitor } from '../qmp/monitor.ts';
import { diskNames, epochPrefix, surgeryMark, trackPrefix } from './names.ts';

/** What lies under a disk's device. */
export type Layout =
  /** libvirt's own node, with or without a job's filter on it. */
  | 'primary'
  /** The quorum over both copies. */
  | 'pair'
  /** The mirror's node. */
  | 'mirror'
  /** Raw layers under libvirt's names over the mirror's node: libvirt's own jobs work on them. */
  | 'layered'
  /** The park: every I/O fails. */
  | 'parked';

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
  sizeBytes: number;
  ioStatus: 'ok' | 'failed' | 'nospace';
  layout: Layout;
  /** libvirt's nodes for the disk, wherever they hang; null when they are gone. */
  primary: PrimaryNodes | null;
  /** The mirror's own node is open. */
  mirrorOpen: boolean;
  /** The quorum node exists, under the device or not. */
  quorum: { primaryChild: string; epochs: string[] } | null;
  parkReady: boolean;
  /** Layers over the mirror's node under libvirt's names, topmost first. */
  layers: string[];
  tracking: TrackBitmap[];
  /** Our job that brings a copy up to date. */
  syncJob: BlockJob | null;
  /** Somebody else's block job on this disk: libvirt's copy during a rebuild, or a stranger's. */
  otherJob: BlockJob | null;
}

export interface PrimaryNodes {
  /** What a device or the quorum is given as its child. */
  top: string;
  /** The first node below filters: bitmaps live here. */
  data: string;
  /** All of libvirt's nodes of this copy, topmost first, backing files included. */
  chain: string[];
}

/** Everything that is read from QEMU for one look at a domain. */
export interface GraphView {
  running: boolean;
  /** qapi/run-state.json: RunState. */
  runState: string;
  /** The mark of a surgery of ours exists. */
  surgeryMarked: boolean;
  disk(dev: string, alias: string, sourceIndex: number | null): DiskGraph | null;
}

export async function viewGraph(monitor: Monitor): Promise<GraphView> {
  const devices = await monitor.execute('query-block', {});
  const graph = await monitor.execute('x-debug-query-block-graph', {});
  const nodes = await monitor.execute('query-named-block-nodes', { flat: true });
  const jobs = await monitor.execute('query-block-jobs', {});
  const status = await monitor.execute('query-status', {});
  const nodeGraph = new NodeGraph(graph, nodes);
  return {
    running: status.running,
    runState: status.status,
    surgeryMarked: nodeGraph.has(surgeryMark),
    disk: (dev, alias, sourceIndex) => {
      const device = devices.find(({ qdev }) => qdev === alias || qdev?.includes(`/${alias}/`));
      return device ? viewDisk(nodeGraph, jobs, device, dev, sourceIndex) : null;
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
  const root = device.inserted?.['node-name'];
  if (device.qdev === undefined || device.inserted === undefined || root === undefined) return null;
  const libvirtTop = [`libvirt-${sourceIndex}-format`, `libvirt-${sourceIndex}-storage`].find((name) => graph.has(name));
  const layers =
    libvirtTop !== undefined && graph.descent(libvirtTop).includes(names.mirror)
      ? graph.descent(libvirtTop).slice(0, graph.descent(libvirtTop).indexOf(names.mirror))
      : [];
  const layout = layoutOf(graph, root, names.quorum, names.mirror, names.park);
  const primaryChild = graph.children(names.quorum).find((child) => child !== names.mirror);
  const primaryTop =
    primaryChild ??
    (layout === 'primary'
      ? graph.below(root, names.syncJob)
      : libvirtTop !== undefined && layers.length === 0
        ? graph.topAbove(libvirtTop)
        : undefined);
  const primary = primaryTop === undefined ? null : primaryNodes(graph, primaryTop);
  const jobNames = graph.jobsOn([root, ...(primary?.chain ?? []), ...layers]);
  return {
    qdev: device.qdev,
    sizeBytes: device.inserted.image['virtual-size'],
    ioStatus: device['io-status'] ?? 'ok',
    layout,
    primary,
    mirrorOpen: graph.has(names.mirror),
    quorum: primaryChild === undefined ? null : { primaryChild, epochs: graph.bitmaps(names.quorum, epochPrefix).map(({ name }) => name) },
    parkReady: graph.has(names.park),
    layers,
    tracking: [
      ...(primary ? graph.bitmaps(primary.data, trackPrefix).map((bitmap) => ({ ...bitmap, on: 'primary' as const })) : []),
      ...graph.bitmaps(names.mirror, trackPrefix).map((bitmap) => ({ ...bitmap, on: 'mirror' as const })),
    ],
    syncJob: jobs.find(({ device }) => device === names.syncJob) ?? null,
    otherJob: jobs.find(({ device }) => device !== names.syncJob && jobNames.includes(device)) ?? null,
  };
}

function layoutOf(graph: NodeGraph, root: string, quorum: string, mirror: string, park: string): Layout {
  if (root === park) return 'parked';
  const [top] = graph.descent(root).filter((name) => !graph.isFilter(name));
  if (top === quorum) return 'pair';
  if (top === mirror) return 'mirror';
  return graph.descent(root).includes(mirror) ? 'layered' : 'primary';
}

function primaryNodes(graph: NodeGraph, top: string): PrimaryNodes {
  const descent = graph.descent(top);
  return { top, data: descent.find((name) => !graph.isFilter(name)) ?? top, chain: graph.chain(top) };
}

/** Drivers that pass I/O through to one child. */
const filterDrivers = new Set(['copy-on-read', 'throttle', 'mirror_top', 'commit_top', 'copy-before-write', 'backup-top']);

/** The edges that lead from a node to the image whose guest-visible data it shows. */
const dataEdges = new Set(['file', 'backing']);

/** The edges to all that a copy consists of. */
const chainEdges = new Set(['file', 'backing', 'data-file']);

/** QEMU's nodes with their edges, by name. */
class NodeGraph {
  readonly #byName: Map<string, { id: number; driver: string; bitmaps: BlockNode['dirty-bitmaps'] }>;
  readonly #nameOf: Map<number, string>;
  readonly #jobs: { id: number; name: string }[];
  readonly #edges: BlockGraph['edges'];

  constructor(graph: BlockGraph, nodes: BlockNode[]) {
    const details = new Map(nodes.map((node) => [node['node-name'], node]));
    const drivers = graph.nodes.filter(({ type }) => type === 'block-driver');
    this.#nameOf = new Map(drivers.map(({ id, name }) => [id, name]));
    this.#byName = new Map(
      drivers.map(({ id, name }) => [name, { id, driver: details.get(name)?.drv ?? '', bitmaps: details.get(name)?.['dirty-bitmaps'] }]),
    );
    this.#jobs = graph.nodes.filter(({ type }) => type === 'block-job');
    this.#edges = graph.edges;
  }

  has(name: string): boolean {
    return this.#byName.has(name);
  }

  isFilter(name: string): boolean {
    return filterDrivers.has(this.#byName.get(name)?.driver ?? '');
  }

  children(name: string, edges?: Set<string>): string[] {
    const id = this.#byName.get(name)?.id;
    return this.#edges
      .filter((edge) => id !== undefined && edge.parent === id && (edges === undefined || edges.has(edge.name)))
      .flatMap((edge) => this.#nameOf.get(edge.child) ?? []);
  }

  /**
   * The node, and what it shows the data of, one below the other. A format node's `file` is followed where it has no backing
   * file, so that raw layers lead to what they lie over.
   */
  descent(name: string): string[] {
    const path = [name];
    for (let at = name; ; ) {
      const [next] = this.children(at, dataEdges);
      if (next === undefined || path.includes(next)) return path;
      path.push(next);
      at = next;
    }
  }

  /** `name`, or what is below it if it is the filter node `filter`. */
  below(name: string, filter: string): string {
    return name === filter ? (this.children(name, dataEdges)[0] ?? name) : name;
  }

  /** The topmost node that leads to `name` through filters. */
  topAbove(name: string): string {
    const id = this.#byName.get(name)?.id;
    const above = this.#edges
      .filter((edge) => edge.child === id && dataEdges.has(edge.name))
      .flatMap((edge) => this.#nameOf.get(edge.parent) ?? [])
      .find((parent) => this.isFilter(parent));
    return above === undefined ? name : this.topAbove(above);
  }

  /** `name` and every node of its image and backing images, parents before children. */
  chain(name: string): string[] {
    const found = [name];
    for (const at of found) {
      for (const child of this.children(at, chainEdges)) if (!found.includes(child)) found.push(child);
    }
    return found;
  }

  jobsOn(names: string[]): string[] {
    return this.#jobs
      .filter((job) =>
        this.#edges.some((edge) => edge.parent === job.id && names.includes(this.#nameOf.get(edge.child) ?? '')),
      )
      .map(({ name }) => name);
  }

  bitmaps(node: string, prefix: string): { name: string; dirtyBytes: number }[] {
    return (this.#byName.get(node)?.bitmaps ?? [])
      .filter((bitmap) => bitmap.recording && bitmap.inconsistent !== true)
      .flatMap(({ name, count }) => (name?.startsWith(prefix) ? { name, dirtyBytes: count } : []));
  }
}
