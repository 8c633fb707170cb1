import type { BlockGraph, BlockNode } from '../qmp/commands.ts';

/** Drivers that pass I/O through to one child. */
const filterDrivers = new Set([
  'copy-on-read',
  'throttle',
  'mirror_top',
  'commit_top',
  'copy-before-write',
  'backup-top',
]);

/** The edges that lead from a node to the image whose guest-visible data it shows. */
const dataEdges = new Set(['file', 'backing']);

/** The edges to all that a copy consists of. */
const chainEdges = new Set(['file', 'backing', 'data-file']);

/** QEMU's nodes with their edges, by name. */
export class NodeGraph {
  readonly #byName: Map<string, { id: number; driver: string; file: string; bitmaps: BlockNode['dirty-bitmaps'] }>;
  readonly #nameOf: Map<number, string>;
  readonly #jobs: { id: number; name: string }[];
  readonly #devices: { id: number; name: string }[];
  readonly #edges: BlockGraph['edges'];

  /** Without `nodes` nothing is known of drivers and bitmaps. */
  constructor(graph: BlockGraph, nodes: BlockNode[] = []) {
    const details = new Map(nodes.map((node) => [node['node-name'], node]));
    const drivers = graph.nodes.filter(({ type }) => type === 'block-driver');
    this.#nameOf = new Map(drivers.map(({ id, name }) => [id, name]));
    this.#byName = new Map(
      drivers.map(({ id, name }) => [
        name,
        {
          id,
          driver: details.get(name)?.drv ?? '',
          file: details.get(name)?.file ?? '',
          bitmaps: details.get(name)?.['dirty-bitmaps'],
        },
      ]),
    );
    this.#jobs = graph.nodes.filter(({ type }) => type === 'block-job');
    this.#devices = graph.nodes.filter(({ type }) => type === 'block-backend');
    this.#edges = graph.edges;
  }

  /** The node under a device. */
  rootOf(qdev: string): string | undefined {
    const id = this.#devices.find(({ name }) => name === qdev)?.id;
    return this.#edges.flatMap((edge) =>
      id !== undefined && edge.parent === id ? (this.#nameOf.get(edge.child) ?? []) : [],
    )[0];
  }

  /** The devices and other block backends that a node is directly under. */
  usersOf(node: string): string[] {
    const id = this.#byName.get(node)?.id;
    const users = this.#edges.filter((edge) => id !== undefined && edge.child === id).map(({ parent }) => parent);
    return this.#devices.flatMap((device) => (users.includes(device.id) ? device.name : []));
  }

  has(name: string): boolean {
    return this.#byName.has(name);
  }

  /** The nodes whose names begin so. */
  named(prefix: string): string[] {
    return [...this.#byName.keys()].filter((name) => name.startsWith(prefix));
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
    for (let at = name; ;) {
      const [next] = this.children(at, dataEdges);
      if (next === undefined || path.includes(next)) return path;
      path.push(next);
      at = next;
    }
  }

  /** `name`, or what is below it if it is the filter node `filter`. */
  without(filter: string, name: string): string {
    return name === filter ? (this.children(name, dataEdges)[0] ?? name) : name;
  }

  /** `name` and every node below it, parents before children. */
  below(name: string): string[] {
    return this.#reachable(name);
  }

  imageOf(name: string): string {
    return this.#byName.get(name)?.file ?? '';
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

  /** The nodes that lead to `name` and have no parent themselves; none if nothing does. */
  topsAbove(name: string): string[] {
    const id = this.#byName.get(name)?.id;
    const parents = this.#edges.flatMap(({ parent, child }) => (child === id ? (this.#nameOf.get(parent) ?? []) : []));
    return parents.flatMap((parent) => {
      const tops = this.topsAbove(parent);
      return tops.length > 0 ? tops : [parent];
    });
  }

  /** `name` and every node of its image and backing images, parents before children. */
  chain(name: string): string[] {
    return this.#reachable(name, chainEdges);
  }

  /** A bitmap of this prefix is on the node, recording or not. */
  hasBitmap(node: string, prefix: string): boolean {
    return (this.#byName.get(node)?.bitmaps ?? []).some(({ name }) => name?.startsWith(prefix) === true);
  }

  #reachable(name: string, edges?: Set<string>): string[] {
    const found = [name];
    for (const at of found) {
      for (const child of this.children(at, edges)) if (!found.includes(child)) found.push(child);
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
