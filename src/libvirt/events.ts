/** The events that can be listened to: how each is asked for, and what it carries. */
import { procedures, program } from './procedures.ts';
import type { Caller } from './procedures.ts';
import { domain, string } from './types.ts';
import type { DomainRef } from './types.ts';
import { asSafeNumber, hyper, int, optional, struct, uint } from './xdr.ts';
import type { Codec } from './xdr.ts';

export interface LifecycleEvent {
  domain: DomainRef;
  /** See `lifecycleEvent`. */
  event: number;
  /** See `startedDetail`, `suspendedDetail` and `stoppedDetail`. */
  detail: number;
}

export interface IoErrorEvent {
  domain: DomainRef;
  /** As in the domain XML; empty for a disk without a path. */
  srcPath: string;
  /** The device's alias, e.g. `virtio-disk0` or `ua-...`. */
  alias: string;
  /** See `ioErrorAction`. */
  action: number;
  /** `enospc`, or empty. */
  reason: string;
}

export interface BlockJobEvent {
  domain: DomainRef;
  /** The target's name, e.g. `vda`. */
  disk: string;
  /** See `blockJobType`. */
  type: number;
  /** See `blockJobStatus`. */
  status: number;
}

export interface MetadataChangeEvent {
  domain: DomainRef;
  /** See `metadataType`. */
  type: number;
  /** The namespace, for `metadataType.element`. */
  uri: string | null;
}

/** A device was hot-plugged, or is gone from the domain. */
export interface DeviceEvent {
  domain: DomainRef;
  alias: string;
}

export interface QemuMonitorEvent {
  domain: DomainRef;
  /** QMP's name of the event, e.g. `STOP`. */
  event: string;
  /** Since 1970, by QEMU's clock. */
  seconds: number;
  micros: number;
  /** The event's `data` as JSON. */
  details: string | null;
}

export interface EventKind<T> {
  name: string;
  /** Program and procedure number of the message that brings the event. */
  program: number;
  procedure: number;
  payload: Codec<T>;
  /** Asks the daemon for the events of all domains. Resolves to the daemon's number of the registration. */
  register: (caller: Caller, deadlineMs?: number) => Promise<number>;
}

/** A message starts with the number of its registration, which is not needed: a connection registers a kind once. */
function afterRegistration<T>(event: Codec<T>): Codec<T> {
  return {
    write: (to, value) => {
      int.write(to, 0);
      event.write(to, value);
    },
    read: (from) => {
      int.read(from);
      return event.read(from);
    },
  };
}

/** `id` is a virDomainEventID. */
const remote = <T>(id: number, procedure: number, name: string, event: Codec<T>): EventKind<T> => ({
  name,
  program: program.remote,
  procedure,
  payload: afterRegistration(event),
  register: (caller, deadlineMs) => caller.call(procedures.eventRegister, { event: id, dom: null }, deadlineMs),
});

const monitorEvent = struct<QemuMonitorEvent>({
  domain,
  event: string,
  seconds: asSafeNumber(hyper),
  micros: uint,
  details: optional(string),
});

export const eventKinds = {
  lifecycle: remote(0, 318, 'lifecycle', struct<LifecycleEvent>({ domain, event: int, detail: int })),
  ioError: remote(
    6,
    324,
    'io-error',
    struct<IoErrorEvent>({ domain, srcPath: string, alias: string, action: int, reason: string }),
  ),
  deviceRemoved: remote(15, 333, 'device-removed', struct<DeviceEvent>({ domain, alias: string })),
  deviceAdded: remote(19, 354, 'device-added', struct<DeviceEvent>({ domain, alias: string })),
  blockJob: remote(16, 339, 'block-job-2', struct<BlockJobEvent>({ domain, disk: string, type: int, status: int })),
  metadataChange: remote(
    23,
    379,
    'metadata-change',
    struct<MetadataChangeEvent>({ domain, type: int, uri: optional(string) }),
  ),
  monitor: {
    name: 'qemu-monitor',
    program: program.qemu,
    procedure: 6,
    payload: afterRegistration(monitorEvent),
    register: (caller, deadlineMs) =>
      caller.call(procedures.monitorEventRegister, { dom: null, event: null, flags: 0 }, deadlineMs),
  } satisfies EventKind<QemuMonitorEvent>,
};
