/** Speaks libvirt's protocol byte for byte on a socket of its own, and answers as a test tells it to. */
import { mkdtemp, rm } from 'node:fs/promises';
import { createServer } from 'node:net';
import type { Server, Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { LibvirtErrorParts } from '../../src/libvirt/errors.ts';
import type { EventKind } from '../../src/libvirt/events.ts';
import { PacketSplitter, encodePacket, packetStatus, packetType } from '../../src/libvirt/packet.ts';
import type { PacketHeader } from '../../src/libvirt/packet.ts';
import { procedures, program } from '../../src/libvirt/procedures.ts';
import { errorParts } from '../../src/libvirt/types.ts';
import { decode, encode } from '../../src/libvirt/xdr.ts';
import type { Codec } from '../../src/libvirt/xdr.ts';

export class FakePeer {
  readonly socket: Socket;
  readonly heard: PacketHeader[] = [];

  constructor(socket: Socket) {
    this.socket = socket;
  }

  send(header: Partial<PacketHeader>, payload: Buffer = Buffer.alloc(0)): void {
    const whole = { program: program.remote, version: 1, procedure: 0, type: 0, serial: 0, status: 0, ...header };
    this.socket.write(encodePacket({ header: whole, payload }));
  }

  event<T>(kind: EventKind<T>, event: T): void {
    const { program: from, procedure } = kind;
    this.send({ program: from, procedure, type: packetType.message }, encode(kind.payload, event));
  }
}

export class FakeCall {
  readonly peer: FakePeer;
  readonly #header: PacketHeader;
  readonly #payload: Buffer;

  constructor(peer: FakePeer, header: PacketHeader, payload: Buffer) {
    this.peer = peer;
    this.#header = header;
    this.#payload = payload;
  }

  args<A>(procedure: { args: Codec<A> }): A {
    return decode(procedure.args, this.#payload);
  }

  answer<R>(procedure: { result: Codec<R> }, result: R): void {
    this.raw({}, encode(procedure.result, result));
  }

  refuse(parts: LibvirtErrorParts): void {
    this.raw({ status: packetStatus.error }, encode(errorParts, parts));
  }

  raw(header: Partial<PacketHeader>, payload: Buffer): void {
    this.peer.send({ ...this.#header, type: packetType.reply, ...header }, payload);
  }
}

type Handler = (call: FakeCall) => void;

export class FakeDaemon {
  readonly socketPath: string;
  readonly peers: FakePeer[] = [];
  answersKeepalive = true;
  readonly #folder: string;
  readonly #handlers = new Map<string, Handler>();
  #server: Server | null = null;

  static async start(): Promise<FakeDaemon> {
    const daemon = new FakeDaemon(await mkdtemp(join(tmpdir(), 'fake-daemon-')));
    await daemon.listen();
    return daemon;
  }

  private constructor(folder: string) {
    this.#folder = folder;
    this.socketPath = join(folder, 'sock');
    this.on(procedures.authList, (call) => call.answer(procedures.authList, [0]));
    this.on(procedures.connectOpen, (call) => call.answer(procedures.connectOpen, undefined));
    this.on(procedures.eventRegister, (call) => call.answer(procedures.eventRegister, 1));
    this.on(procedures.monitorEventRegister, (call) => call.answer(procedures.monitorEventRegister, 2));
  }

  on(procedure: { program: number; number: number }, handler: Handler): void {
    this.#handlers.set(`${procedure.program}/${procedure.number}`, handler);
  }

  async listen(): Promise<void> {
    const server = createServer((socket) => this.#accept(socket));
    this.#server = server;
    await new Promise<void>((resolve) => server.listen(this.socketPath, resolve));
  }

  /** Breaks off all connections and listens no more. */
  async die(): Promise<void> {
    const server = this.#server;
    this.#server = null;
    for (const peer of this.peers.splice(0)) peer.socket.destroy();
    if (server !== null) await new Promise((resolve) => server.close(resolve));
  }

  async remove(): Promise<void> {
    await this.die();
    await rm(this.#folder, { recursive: true });
  }

  #accept(socket: Socket): void {
    const peer = new FakePeer(socket);
    const splitter = new PacketSplitter();
    this.peers.push(peer);
    socket.on('error', () => undefined);
    socket.on('close', () => {
      const at = this.peers.indexOf(peer);
      if (at >= 0) this.peers.splice(at, 1);
    });
    socket.on('data', (chunk) => {
      for (const { header, payload } of splitter.push(chunk)) {
        peer.heard.push(header);
        if (header.program === program.keepalive) {
          if (this.answersKeepalive && header.procedure === 1) peer.send({ ...header, procedure: 2 });
        } else {
          this.#handlers.get(`${header.program}/${header.procedure}`)?.(new FakeCall(peer, header, payload));
        }
      }
    });
  }
}

/** Resolves when the condition holds; the test's own time limit ends the wait. */
export async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => setTimeout(resolve, 2));
}
