import type { DiskGraph, Layout, Pair } from '../../src/graph/view.ts';
import type { DiskObservation, Health, Observation, RunView } from '../../src/protection/observation.ts';
import { newDiskRecord, type DiskRecord, type Intent } from '../../src/protection/record.ts';
import { parseImageUri } from '../../src/storage/image.ts';

/** Looks at a domain, made by hand: what a test does not mention is as in a healthy, running, protected domain. */

export const primaryImage = parseImageUri('/primary/vda');
export const mirrorImage = parseImageUri('nbd://backup1/vda');
export const newImage = parseImageUri('/new/vda');

export const answering: Health = { is: 'answering' };
export const unknown: Health = { is: 'unknown' };
export const failed: Health = { is: 'failed', why: 'write: Input/output error', noSpace: false };
export const full: Health = { is: 'failed', why: 'write: No space left on device', noSpace: true };

export const rebuildToNew: Intent = { kind: 'rebuild', to: newImage, original: false };
export const rebuildToOriginal: Intent = { kind: 'rebuild', to: primaryImage, original: true };

const both: DiskRecord = {
  ...newDiskRecord({ dev: 'vda', mirror: mirrorImage, rebuild: null }, primaryImage, true),
  instance: 'boot/1',
};

export const record = {
  both: { ...both, mirror: { ...both.mirror, current: true }, state: 'protected' },
  onlyPrimary: {
    ...both,
    track: { bitmap: 'cdp-track-1', base: 'whole' },
    exposedSince: '2026-01-01T00:00:00.000Z',
    state: 'exposed',
  },
  onlyMirror: {
    ...both,
    primary: { ...both.primary, current: false },
    mirror: { ...both.mirror, current: true },
    track: { bitmap: 'cdp-track-1', base: 'whole' },
    layerNames: ['libvirt-1-format', 'libvirt-1-storage'],
    state: 'failed-over',
  },
} satisfies Record<string, DiskRecord>;

const sizeBytes = 10 * 1024 * 1024;
export const primaryNodes = {
  top: 'libvirt-1-format',
  data: 'libvirt-1-format',
  chain: ['libvirt-1-format', 'libvirt-1-storage'],
  images: ['/primary/vda', '/primary/vda'],
};

const plain: DiskGraph = {
  qdev: '/machine/peripheral/virtio-disk0/virtio-backend',
  root: 'libvirt-1-format',
  sizeBytes,
  ioStatus: 'ok',
  layout: 'primary',
  primary: primaryNodes,
  mirrorOpen: false,
  mirrorSockets: [],
  pair: null,
  parkReady: false,
  layers: [],
  tracking: [],
  syncJob: null,
  otherJob: null,
  instant: false,
};

const pair: Pair = {
  engine: 'quorum',
  primaryChild: 'libvirt-1-format',
  epochs: ['cdp-epoch-1'],
  inSync: true,
  copying: false,
};

/** What lies under the device. */
export const graph = {
  plain,
  onOther: { ...plain, primary: { ...primaryNodes, images: ['/new/vda', '/new/vda'] } },
  exposed: { ...plain, tracking: [{ name: 'cdp-track-1', on: 'primary', dirtyBytes: 0 }] },
  pair: { ...plain, layout: 'pair', root: 'cdp-vda', mirrorOpen: true, pair },
  mirror: {
    ...plain,
    layout: 'mirror',
    root: 'cdp-vda-mirror',
    primary: null,
    mirrorOpen: true,
    tracking: [{ name: 'cdp-track-1', on: 'mirror', dirtyBytes: 0 }],
  },
  layered: {
    ...plain,
    layout: 'layered',
    root: 'libvirt-1-format',
    primary: null,
    mirrorOpen: true,
    layers: ['libvirt-1-format', 'libvirt-1-storage'],
  },
  mirrorJob: {
    ...plain,
    layout: 'pair',
    root: 'cdp-vda',
    mirrorOpen: true,
    pair: { ...pair, engine: 'mirror' },
  },
  parked: { ...plain, layout: 'parked', root: 'cdp-vda-park', mirrorOpen: true, parkReady: true },
  parkedPair: { ...plain, layout: 'parked', root: 'cdp-vda-park', mirrorOpen: true, pair, parkReady: true },
} satisfies Record<string, DiskGraph & { layout: Layout }>;

export const job = (part: Partial<NonNullable<DiskGraph['syncJob']>>): NonNullable<DiskGraph['syncJob']> => ({
  device: 'cdp-vda-sync',
  type: 'mirror',
  speed: 0,
  offset: 1,
  len: 2,
  ready: false,
  status: 'running',
  paused: false,
  'io-status': 'ok',
  ...part,
});

export type DiskParts = Partial<DiskObservation>;

export function diskSeen(parts: DiskParts = {}): DiskObservation {
  return {
    record: record.both,
    graph: graph.pair,
    orphans: [],
    ioThread: false,
    engine: 'quorum',
    withoutStopPolicy: null,
    liveImage: primaryImage,
    obstacle: null,
    xmlBehind: false,
    ioFailed: false,
    noSpace: false,
    health: { primary: unknown, mirror: unknown },
    primaryGone: null,
    touched: [],
    atStop: null,
    copyFailed: null,
    hang: null,
    silent: [],
    mayRetry: true,
    deltaPasses: 0,
    pace: { bytesPerS: 0, mostBytesPerS: 0 },
    verify: { is: 'none' },
    epochs: { rotate: false, flushed: [] },
    ...parts,
  };
}

export function look(
  disks: DiskParts | DiskParts[] = {},
  parts: {
    run?: RunView;
    policy?: 'available' | 'strict';
    surgeryMarked?: boolean;
    migrating?: boolean;
    leaving?: boolean;
  } = {},
): Observation {
  const seen = (Array.isArray(disks) ? disks : [disks]).map(diskSeen);
  return {
    now: '2026-01-02T00:00:00.000Z',
    run: parts.run ?? 'running',
    instance: 'boot/1',
    surgeryMarked: parts.surgeryMarked ?? false,
    migrating: parts.migrating ?? false,
    leaving: parts.leaving ?? false,
    record: {
      version: 1,
      uuid: '8a2f0b4e-0000-4000-8000-000000000001',
      name: 'web1',
      policy: parts.policy ?? 'available',
      lastStart: null,
      restoreOwed: null,
      disks: seen.map((disk) => disk.record),
    },
    disks: seen,
  };
}
