/**
 * Who listens to which events.
 *
 * INVARIANTS
 * - A connection registers a kind at most once, so no event is delivered twice. It stays registered until the
 *   connection ends; events that nobody listens to are dropped.
 * - A registration whose outcome is unknown ends the connection, because asking again could register the kind twice.
 * - A listener is in place before the daemon is asked, so the first event after the registration is delivered.
 */
import type { Connection } from './connection.ts';
import { CallTimeoutError, ConnectionLostError } from './errors.ts';
import { eventKinds } from './events.ts';
import type {
  BlockJobEvent,
  DeviceEvent,
  EventKind,
  IoErrorEvent,
  LifecycleEvent,
  MetadataChangeEvent,
  QemuMonitorEvent,
} from './events.ts';
import { callEach } from './listeners.ts';
import type { Listener, Unsubscribe } from './listeners.ts';
import type { Packet } from './packet.ts';
import { decode } from './xdr.ts';

/**
 * Events of all domains, in the order in which the daemon sends them. The promises resolve when the daemon has begun to
 * send. What a listener throws does not keep others from being called; it surfaces as an uncaught exception.
 */
export interface DomainEvents {
  onLifecycle(listener: Listener<LifecycleEvent>, deadlineMs?: number): Promise<Unsubscribe>;
  onIoError(listener: Listener<IoErrorEvent>, deadlineMs?: number): Promise<Unsubscribe>;
  onBlockJob(listener: Listener<BlockJobEvent>, deadlineMs?: number): Promise<Unsubscribe>;
  onMetadataChange(listener: Listener<MetadataChangeEvent>, deadlineMs?: number): Promise<Unsubscribe>;
  onDeviceRemoved(listener: Listener<DeviceEvent>, deadlineMs?: number): Promise<Unsubscribe>;
  onDeviceAdded(listener: Listener<DeviceEvent>, deadlineMs?: number): Promise<Unsubscribe>;
  /** QMP events as QEMU sends them; with a name only those. */
  onQemuMonitorEvent(
    listener: Listener<QemuMonitorEvent>,
    event?: string | null,
    deadlineMs?: number,
  ): Promise<Unsubscribe>;
}

interface Channel {
  listeners: Set<Listener<never>>;
  register: (connection: Connection, deadlineMs?: number) => Promise<number>;
  deliver: (payload: Buffer) => void;
}

export interface EventHubOptions {
  /** True: a subscription without a connection waits for the next one, instead of being rejected. */
  outlivesConnection: boolean;
}

export class EventHub implements DomainEvents {
  readonly #outlivesConnection: boolean;
  readonly #channels = new Map<string, Channel>();
  #connection: Connection | null = null;
  #registrations = new Map<Channel, Promise<number>>();

  constructor(options: EventHubOptions) {
    this.#outlivesConnection = options.outlivesConnection;
  }

  onLifecycle(listener: Listener<LifecycleEvent>, deadlineMs?: number): Promise<Unsubscribe> {
    return this.#subscribe(eventKinds.lifecycle, listener, deadlineMs);
  }

  onIoError(listener: Listener<IoErrorEvent>, deadlineMs?: number): Promise<Unsubscribe> {
    return this.#subscribe(eventKinds.ioError, listener, deadlineMs);
  }

  onBlockJob(listener: Listener<BlockJobEvent>, deadlineMs?: number): Promise<Unsubscribe> {
    return this.#subscribe(eventKinds.blockJob, listener, deadlineMs);
  }

  onMetadataChange(listener: Listener<MetadataChangeEvent>, deadlineMs?: number): Promise<Unsubscribe> {
    return this.#subscribe(eventKinds.metadataChange, listener, deadlineMs);
  }

  onDeviceRemoved(listener: Listener<DeviceEvent>, deadlineMs?: number): Promise<Unsubscribe> {
    return this.#subscribe(eventKinds.deviceRemoved, listener, deadlineMs);
  }

  onDeviceAdded(listener: Listener<DeviceEvent>, deadlineMs?: number): Promise<Unsubscribe> {
    return this.#subscribe(eventKinds.deviceAdded, listener, deadlineMs);
  }

  onQemuMonitorEvent(
    listener: Listener<QemuMonitorEvent>,
    event: string | null = null,
    deadlineMs?: number,
  ): Promise<Unsubscribe> {
    const filtered: Listener<QemuMonitorEvent> = (happened) => {
      if (event === null || happened.event === event) listener(happened);
    };
    return this.#subscribe(eventKinds.monitor, filtered, deadlineMs);
  }

  /** Takes the events from this connection, and asks it for every kind that has a listener. */
  async attach(connection: Connection): Promise<void> {
    this.#connection = connection;
    this.#registrations = new Map();
    connection.on('message', (packet) => this.#deliver(packet));
    connection.on('lost', () => {
      if (this.#connection === connection) this.#connection = null;
    });
    const wanted = [...this.#channels.values()].filter((channel) => channel.listeners.size > 0);
    await Promise.all(wanted.map((channel) => this.#register(connection, channel)));
  }

  async #subscribe<T>(kind: EventKind<T>, listener: Listener<T>, deadlineMs?: number): Promise<Unsubscribe> {
    const channel = this.#channelOf(kind);
    const own: Listener<T> = (event) => listener(event);
    channel.listeners.add(own);
    const unsubscribe = () => void channel.listeners.delete(own);
    try {
      if (this.#connection === null) throw new ConnectionLostError(`no connection for ${kind.name} events`);
      await this.#register(this.#connection, channel, deadlineMs);
    } catch (error) {
      if (!(this.#outlivesConnection && error instanceof ConnectionLostError)) {
        unsubscribe();
        throw error;
      }
    }
    return unsubscribe;
  }

  #channelOf<T>(kind: EventKind<T>): Channel {
    const key = messageKey(kind);
    const known = this.#channels.get(key);
    if (known !== undefined) return known;
    const listeners = new Set<Listener<T>>();
    const channel: Channel = {
      listeners,
      register: kind.register,
      deliver: (payload) => callEach(listeners, decode(kind.payload, payload)),
    };
    this.#channels.set(key, channel);
    return channel;
  }

  async #register(connection: Connection, channel: Channel, deadlineMs?: number): Promise<void> {
    const registrations = this.#registrations;
    const registration = registrations.get(channel) ?? channel.register(connection, deadlineMs);
    registrations.set(channel, registration);
    try {
      await registration;
    } catch (error) {
      registrations.delete(channel);
      if (error instanceof CallTimeoutError) await connection.close();
      throw error;
    }
  }

  #deliver({ header, payload }: Packet): void {
    this.#channels.get(messageKey(header))?.deliver(payload);
  }
}

function messageKey({ program, procedure }: { program: number; procedure: number }): string {
  return `${program}/${procedure}`;
}
