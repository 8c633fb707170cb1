/**
 * One connection to the daemon.
 *
 * INVARIANTS
 * - Every call settles exactly once: by its answer, its deadline, or the end of the connection.
 * - `#calls` holds what the daemon still owes an answer for. A call past its deadline stays in it, because it still
 *   takes one of the places (max_client_requests) that the daemon gives this connection.
 * - After `lost` there is no timer, no socket and no call left, and nothing more is emitted.
 */
import { EventEmitter } from 'node:events';
import { createConnection } from 'node:net';
import type { Socket } from 'node:net';
import { CallTimeoutError, ConnectionLostError, LibvirtError, ProtocolError } from './errors.ts';
import { Keepalive, defaultKeepalive, keepaliveProcedure } from './keepalive.ts';
import type { KeepaliveOptions } from './keepalive.ts';
import { PacketSplitter, encodePacket, packetStatus, packetType } from './packet.ts';
import type { Packet, PacketHeader } from './packet.ts';
import { defaultDeadlineMs, program, programVersion } from './procedures.ts';
import type { Caller, Procedure } from './procedures.ts';
import { errorParts } from './types.ts';
import { decode, encode } from './xdr.ts';

export interface ConnectionOptions {
  socketPath: string;
  keepalive?: KeepaliveOptions | undefined;
}

interface ConnectionEvents {
  /** An event of libvirt's, not yet decoded. A listener that throws a ProtocolError ends the connection. */
  message: [packet: Packet];
  /** The daemon has answered a call and takes another. */
  placeFree: [];
  lost: [error: ConnectionLostError];
}

interface PendingCall {
  program: number;
  procedure: number;
  overdue: boolean;
  timer: NodeJS.Timeout;
  answer: (packet: Packet) => void;
  fail: (error: Error) => void;
}

export class Connection extends EventEmitter<ConnectionEvents> implements Caller {
  readonly #socket: Socket;
  readonly #keepalive: Keepalive;
  readonly #splitter = new PacketSplitter();
  readonly #calls = new Map<number, PendingCall>();
  readonly #socketClosed: Promise<void>;
  #nextSerial = 1;
  #lost: ConnectionLostError | null = null;

  /** Connects. Rejects with a ConnectionLostError if nobody listens on the socket. */
  static async open(options: ConnectionOptions): Promise<Connection> {
    const socket = createConnection(options.socketPath);
    await new Promise<void>((resolve, reject) => {
      socket.once('connect', resolve);
      socket.once('error', (cause) => {
        reject(new ConnectionLostError(`no connection to libvirt at ${options.socketPath}`, { cause }));
      });
    });
    return new Connection(socket, options.keepalive ?? defaultKeepalive);
  }

  private constructor(socket: Socket, keepalive: KeepaliveOptions) {
    super();
    this.#socket = socket;
    this.#socketClosed = new Promise((resolve) => socket.once('close', () => resolve()));
    socket.removeAllListeners('error');
    socket.on('error', (cause) => this.#end('the connection to libvirt broke', cause));
    socket.on('close', () => this.#end('libvirt closed the connection'));
    socket.on('data', (chunk) => this.#receive(chunk));
    this.#keepalive = new Keepalive(
      keepalive,
      () => this.#sendKeepalive(keepaliveProcedure.ping),
      () => this.#end('libvirt answers no keepalive'),
    );
  }

  /** Why the connection ended; null while it is up. */
  get lost(): ConnectionLostError | null {
    return this.#lost;
  }

  /** The calls that the daemon has not answered yet, those past their deadline included. */
  get unanswered(): number {
    return this.#calls.size;
  }

  /** The calls past their deadline that the daemon still works on. */
  get overdue(): number {
    return [...this.#calls.values()].filter((call) => call.overdue).length;
  }

  async call<A, R>(procedure: Procedure<A, R>, args: A, deadlineMs = defaultDeadlineMs): Promise<R> {
    if (this.#lost !== null) throw new ConnectionLostError(this.#lost.message, { cause: this.#lost.cause });
    const serial = this.#takeSerial();
    const header = { program: procedure.program, procedure: procedure.number, type: packetType.call, serial };
    const request = outgoing(header, encode(procedure.args, args));
    const answer = await new Promise<Packet>((resolve, reject) => {
      const call: PendingCall = {
        program: procedure.program,
        procedure: procedure.number,
        overdue: false,
        timer: setTimeout(() => {
          call.overdue = true;
          reject(new CallTimeoutError(procedure.name, deadlineMs, true));
        }, deadlineMs),
        answer: resolve,
        fail: reject,
      };
      this.#calls.set(serial, call);
      this.#socket.write(request);
    });
    return resultOf(procedure, answer);
  }

  /** Ends the connection; calls in flight are rejected, with `why` if given. Resolves when the socket is closed. */
  async close(why?: ConnectionLostError): Promise<void> {
    this.#end(why?.message ?? 'the connection to libvirt was closed', why?.cause);
    await this.#socketClosed;
  }

  #takeSerial(): number {
    const serial = this.#nextSerial;
    this.#nextSerial = serial === 0xffffffff ? 1 : serial + 1;
    return serial;
  }

  #sendKeepalive(procedure: number): void {
    const header = { program: program.keepalive, procedure, type: packetType.message, serial: 0 };
    this.#socket.write(outgoing(header, Buffer.alloc(0)));
  }

  #receive(chunk: Buffer): void {
    this.#keepalive.heard();
    try {
      for (const packet of this.#splitter.push(chunk)) {
        if (this.#lost === null) this.#dispatch(packet);
      }
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error;
      this.#end('libvirt sent what is not its protocol', error);
    }
  }

  #dispatch(packet: Packet): void {
    const { header } = packet;
    if (header.version !== programVersion) throw new ProtocolError(`program version ${header.version}`);
    switch (header.type) {
      case packetType.reply:
        this.#settle(packet);
        return;
      case packetType.message:
        if (header.program !== program.keepalive) this.emit('message', packet);
        else if (header.procedure === keepaliveProcedure.ping) this.#sendKeepalive(keepaliveProcedure.pong);
        return;
      default:
        throw new ProtocolError(`an unexpected packet of type ${header.type}`);
    }
  }

  #settle(packet: Packet): void {
    const { serial, program: from, procedure } = packet.header;
    const call = this.#calls.get(serial);
    if (call?.program !== from || call.procedure !== procedure) {
      throw new ProtocolError(`an answer to call ${serial} of procedure ${procedure}, which was not made`);
    }
    this.#calls.delete(serial);
    clearTimeout(call.timer);
    call.answer(packet);
    this.emit('placeFree');
  }

  #end(message: string, cause?: unknown): void {
    if (this.#lost !== null) return;
    this.#lost = new ConnectionLostError(message, { cause });
    this.#keepalive.stop();
    this.#socket.destroy();
    for (const call of this.#calls.values()) {
      clearTimeout(call.timer);
      call.fail(new ConnectionLostError(message, { sent: true, cause }));
    }
    this.#calls.clear();
    this.emit('lost', this.#lost);
    this.removeAllListeners();
  }
}

function outgoing(header: Omit<PacketHeader, 'version' | 'status'>, payload: Buffer): Buffer {
  return encodePacket({ header: { ...header, version: programVersion, status: packetStatus.ok }, payload });
}

function resultOf<A, R>(procedure: Procedure<A, R>, { header, payload }: Packet): R {
  switch (header.status) {
    case packetStatus.ok:
      return decode(procedure.result, payload);
    case packetStatus.error:
      throw new LibvirtError(procedure.name, decode(errorParts, payload));
    default:
      throw new ProtocolError(`${procedure.name}: an answer of status ${header.status}`);
  }
}
