import { diskNames, epochPrefix, trackPrefix } from '../../src/graph/names.ts';
import type { DiskGraph, PrimaryNodes } from '../../src/graph/view.ts';
import type { RunView } from '../../src/protection/observation.ts';
import type { Side } from '../../src/protection/model.ts';
import { blockBytes, blockCount, type Job, type SimulatedQemu } from './simulated-qemu.ts';

/** Why the guest stands still, if it does: a pause that is marked is a surgery's. */
export function runOf(paused: 'user' | 'unknown' | 'io-error' | null, marked: boolean): RunView {
  switch (paused) {
    case null:
      return 'running';
    case 'user':
      return 'suspended';
    case 'io-error':
      return 'io-error';
    case 'unknown':
      return marked ? 'surgery' : 'suspended';
  }
}

/** A simulated QEMU's graph as src/graph/view.ts would find it. `index` is libvirt's number of the disk's live source. */
export function graphOf(qemu: SimulatedQemu, dev: string, index: number | undefined): DiskGraph | null {
  const device = qemu.devices.get(dev);
  if (device === undefined) return null;
  const names = diskNames(dev);
  const descent = (name: string): string[] => [
    name,
    ...(qemu.node(name).below[0] === undefined ? [] : descent(qemu.node(name).below[0] ?? '')),
  ];
  const libvirtTop = `libvirt-${index}-format`;
  const layout = layoutOf(qemu, device.root, descent(device.root), names);
  const pair = qemu.nodes.get(names.pair);
  const pairJob = qemu.jobs.get(names.pairJob);
  const topAbove = (name: string): string => {
    const filter = [...qemu.nodes].find(([, { kind, below }]) => kind === 'filter' && below.includes(name));
    return filter === undefined ? name : topAbove(filter[0]);
  };
  const known = qemu.nodes.has(libvirtTop) ? descent(topAbove(libvirtTop)) : [];
  const layers = known.slice(0, Math.max(0, known.indexOf(names.mirror)));
  const top =
    pair?.below[0] ??
    (layout === 'primary'
      ? descent(device.root).find((name) => name !== names.syncJob)
      : known.length > 0 && layers.length === 0
        ? topAbove(libvirtTop)
        : undefined);
  const primary: PrimaryNodes | null =
    top === undefined
      ? null
      : {
          top,
          data: descent(top).find((name) => qemu.node(name).kind !== 'filter') ?? top,
          chain: descent(top),
          images: qemu.copiesUnder(top).map(({ name }) => name),
        };
  const jobsOver = [...qemu.jobs.values()].filter(
    (job) =>
      job.filter === device.root ||
      [...(primary?.chain ?? []), ...layers].some((name) => name === job.filter || name === job.device),
  );
  const view = (job: Job | undefined): DiskGraph['syncJob'] =>
    job === undefined
      ? null
      : {
          device: job.id,
          type: job.type,
          ready: job.ready,
          offset: 0,
          len: 0,
          speed: 0,
          status: job.ended === null ? 'running' : 'concluded',
          ...(job.ended === 'badly' && { error: 'EIO' }),
          paused: false,
          'io-status': 'ok',
        };
  const tracking = (on: Side, name: string): DiskGraph['tracking'] =>
    [...(qemu.nodes.get(name)?.bitmaps ?? [])].flatMap(([bitmap, dirty]) =>
      bitmap.startsWith(trackPrefix) ? [{ name: bitmap, on, dirtyBytes: dirty.size * blockBytes }] : [],
    );
  return {
    qdev: dev,
    root: device.root,
    sizeBytes: blockCount * blockBytes,
    ioStatus: device.ioStatus,
    layout,
    primary,
    mirrorOpen: qemu.nodes.has(names.mirror),
    mirrorSockets: [],
    pair:
      pair === undefined
        ? null
        : {
            engine: pair.kind === 'quorum' ? 'quorum' : 'mirror',
            inSync: pairJob === undefined || (pairJob.blocking === 'in sync' && pairJob.ready),
            copying: pairJob?.blocking === 'in sync' && !pairJob.ready,
            primaryChild: pair.below[0] ?? '',
            epochs: [...pair.bitmaps.keys()].filter((name) => name.startsWith(epochPrefix)),
          },
    parkReady: qemu.nodes.has(names.park),
    layers,
    tracking: [...(primary === null ? [] : tracking('primary', primary.data)), ...tracking('mirror', names.mirror)],
    syncJob: view(
      qemu.jobs.get(names.syncJob) ?? (layout === 'pair' && pairJob?.ready === false ? pairJob : undefined),
    ),
    otherJob: view(jobsOver.find(({ id }) => id !== names.syncJob && id !== names.pairJob)),
    instant: qemu.instants.has(dev),
  };
}

/** As GraphView.orphans has it, of a disk that no longer has its device, or a new one. */
export function orphansOf(qemu: SimulatedQemu, dev: string, graph: DiskGraph | null): string[] {
  if (graph !== null && !(graph.layout === 'primary' && graph.pair !== null)) return [];
  const { syncJob, pair, mirror, park, nothing } = diskNames(dev);
  const below = (name: string): string[] => [name, ...qemu.node(name).below.flatMap(below)];
  const above = (name: string): string[] =>
    [...qemu.nodes].flatMap(([parent, node]) => (node.below.includes(name) ? [...above(parent), parent] : []));
  const tops = [...above(mirror), syncJob, pair, park, nothing, mirror].filter((name) => qemu.nodes.has(name));
  return [...new Set(tops.flatMap(below))];
}

function layoutOf(
  qemu: SimulatedQemu,
  root: string,
  descent: string[],
  names: ReturnType<typeof diskNames>,
): DiskGraph['layout'] {
  if (root === names.park) return 'parked';
  const top = descent.find((name) => name === names.pair || qemu.node(name).kind !== 'filter');
  if (top === names.pair) return 'pair';
  if (top === names.mirror) return 'mirror';
  return descent.includes(names.mirror) ? 'layered' : 'primary';
}
