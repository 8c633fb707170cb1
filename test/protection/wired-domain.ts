import { LibvirtSession } from '../../src/libvirt/session.ts';
import { procedures } from '../../src/libvirt/procedures.ts';
import type { DomainRef } from '../../src/libvirt/types.ts';
import { LiveDomain } from '../../src/protection/live-domain.ts';
import { FakeDaemon } from '../libvirt/fake-daemon.ts';
import { FakeQemu, type Answers } from '../qmp/fake-qemu.ts';
import { look } from './observations.ts';
import { Relays } from '../../src/protection/relays/relays.ts';
import { withoutSecrets } from '../storage/images.ts';

const { name, uuid } = look().record;

const xmlWith = (
  errorPolicy: string,
): string => `<domain type='kvm' id='7'><name>${name}</name><uuid>${uuid}</uuid><devices>
<disk type='file' device='disk'><driver name='qemu' type='raw' error_policy='${errorPolicy}'/><source file='/primary/vda' index='1'/>
<target dev='vda' bus='virtio'/><alias name='virtio-disk0'/></disk>
</devices></domain>`;

/** Of which the test's own process is the QEMU. */
class OwnProcess extends LiveDomain {
  override get pid(): number {
    return process.pid;
  }
}

/** A running domain at the wire: libvirt's protocol on a socket, and through it QEMU's monitor. */
export class WiredDomain {
  readonly qemu: FakeQemu;
  readonly live: LiveDomain;
  readonly #daemon: FakeDaemon;
  readonly #session: LibvirtSession;

  private constructor(daemon: FakeDaemon, session: LibvirtSession, qemu: FakeQemu) {
    this.#daemon = daemon;
    this.#session = session;
    this.qemu = qemu;
    const ref: DomainRef = { name, uuid, id: 7 };
    this.live = new OwnProcess(session, ref, new Relays(() => daemon.socketPath, withoutSecrets), () => undefined);
  }

  /** `answers` are QEMU's; what they lack is answered with nothing. */
  static async run(answers: Answers, { errorPolicy = 'stop' } = {}): Promise<WiredDomain> {
    const daemon = await FakeDaemon.start();
    const qemu = new FakeQemu(answers);
    daemon.on(procedures.monitorCommand, (call) => {
      const { command } = call.args(procedures.monitorCommand);
      void qemu.send(command).then((answer) => call.answer(procedures.monitorCommand, answer));
    });
    daemon.on(procedures.xml, (call) => call.answer(procedures.xml, xmlWith(errorPolicy)));
    daemon.on(procedures.isPersistent, (call) => call.answer(procedures.isPersistent, true));
    daemon.on(procedures.state, (call) => call.answer(procedures.state, { state: 1, reason: 1 }));
    daemon.on(procedures.setMetadata, (call) => call.answer(procedures.setMetadata, undefined));
    const session = LibvirtSession.start({ socketPath: daemon.socketPath });
    await new Promise<void>((resolve) => session.onConnected(resolve));
    return new WiredDomain(daemon, session, qemu);
  }

  async close(): Promise<void> {
    await this.#session.close();
    await this.#daemon.remove();
  }
}
