import { mkdirSync, writeFileSync } from 'node:fs';
import { truncate } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { AgentClient } from '../../src/control/client.ts';
import { withDiskImage } from '../../src/domain/edit.ts';
import type { DomainStatus, Side } from '../../src/protection/model.ts';
import { parseDomain } from '../../src/domain/domain.ts';
import { imageName, parseImageUri } from '../../src/storage/image.ts';
import { waitForLibvirt } from '../integration/scene.ts';
import type { Agent } from '../lab/agent.ts';
import type { ImageSource } from '../lab/domain-xml.ts';
import type { Guest } from '../lab/guest.ts';
import { Lab } from '../lab/lab.ts';
import { must } from '../lab/run.ts';
import type { NbdServer } from '../lab/storage.ts';
import type { Fault } from './schedule.ts';
import type { DiskShape, DomainShape } from './shape.ts';

const diskBytes = 16 << 20;

/** The guests write to the first half of their disks; the rest is only there to be copied. */
const witnessBlocks = diskBytes / 2 / 4096;

/** An image that is or was a copy of a disk. */
export interface Copy {
  /** As virt-cdp names it. */
  source: string;
  file: string;
  format: 'raw' | 'qcow2';
  server: NbdServer | null;
  /** What an overlay lies over. */
  backing: Copy | null;
}

export interface DiskInForce {
  dev: string;
  shape: DiskShape;
  /** As last seen in virt-cdp's status. */
  copies: Record<Side, Copy>;
}

export interface DomainInForce {
  name: string;
  shape: DomainShape;
  guest: Guest;
  disks: DiskInForce[];
  /** The definition at the last `protect`: with a protection that ends, virt-cdp forgets the primaries of former days. */
  oldXml: string;
  /** A stranger's suspend or stop succeeded, and nothing since then can have ended it. */
  suspendAsked: boolean;
  /** ... and the domain has been seen paused by it. */
  suspendSeen: boolean;
}

export interface FaultInForce {
  fault: Fault;
  /** Acknowledgements on the disk when the fault was complete. */
  acknowledged: number;
}

/** What there is, what is in force, and what the truth is. */
export class World {
  readonly lab: Lab;
  readonly agent: Agent;
  readonly client: AgentClient;
  readonly domains: DomainInForce[] = [];
  readonly faults = new Map<NbdServer, FaultInForce>();
  /** Servers that have lost what they had not flushed, since the copies were last found identical. */
  readonly crashed = new Set<NbdServer>();
  /** A deed restarts the agent. */
  agentIsDown = false;
  /** A deed restarts libvirtd. */
  libvirtdIsDown = false;
  readonly #copies = new Map<string, Copy>();
  #made = 0;

  private constructor(lab: Lab, agent: Agent) {
    this.lab = lab;
    this.agent = agent;
    this.client = new AgentClient({ socketPath: agent.socket });
  }

  /** A laboratory with the hook installed, and with these domains running and protected. */
  static async create(shapes: readonly DomainShape[]): Promise<World> {
    const lab = await Lab.start();
    try {
      const scratch = lab.path('scratch');
      mkdirSync(scratch);
      const agent = await lab.agent({
        config: { resync: { max_bytes_per_s: 16 << 20 }, mirror: { timeout_ms: 2000 }, verify: { scratch } },
      });
      await agent.installHook();
      lab.libvirtd.reload();
      await waitForLibvirt(agent);
      const world = new World(lab, agent);
      await must('dd', 'if=/dev/urandom', `of=${lab.path('ballast')}`, 'bs=1M', 'count=8', 'seek=8', 'status=none');
      for (const shape of shapes) world.domains.push(await world.#addDomain(shape));
      return world;
    } catch (error) {
      await lab.close();
      throw error;
    }
  }

  domain(name: string): DomainInForce {
    const domain = this.domains.find((one) => one.name === name);
    if (domain === undefined) throw new Error(`no domain ${name}`);
    return domain;
  }

  disk(domain: string, dev: string): DiskInForce {
    const disk = this.domain(domain).disks.find((one) => one.dev === dev);
    if (disk === undefined) throw new Error(`no disk ${domain}/${dev}`);
    return disk;
  }

  copy({ domain, dev, side }: { domain: string; dev: string; side: Side }): Copy {
    return this.disk(domain, dev).copies[side];
  }

  /** The copy that virt-cdp or libvirt names so. */
  named(source: string): Copy {
    const copy = this.#copies.get(source);
    if (copy === undefined) throw new Error(`'${source}' is no copy that was ever made`);
    return copy;
  }

  /** The faults that a copy suffers, its backing files' included. */
  faultsOf(copy: Copy): Fault[] {
    const own = copy.server === null ? undefined : this.faults.get(copy.server)?.fault;
    return [...(own === undefined ? [] : [own]), ...(copy.backing === null ? [] : this.faultsOf(copy.backing))];
  }

  /** null while a domain is not protected. Remembers which images are its copies. */
  async status(name: string): Promise<DomainStatus | null> {
    let status: DomainStatus;
    try {
      status = await this.client.domain(name);
    } catch (error) {
      if ((error as { code?: string }).code === 'no-such-protected-domain') return null;
      throw error;
    }
    for (const { dev, primary, mirror } of status.disks) {
      this.disk(name, dev).copies = { primary: this.named(primary.source), mirror: this.named(mirror.source) };
    }
    return status;
  }

  /** State and reason in libvirt's words. Another deed may be about to restart libvirtd. */
  async state(name: string): Promise<string> {
    return this.reached(() => this.domain(name).guest.state());
  }

  async isRunning(name: string): Promise<boolean> {
    return !(await this.state(name)).startsWith('shut off');
  }

  /** libvirtd may crash by itself (9.0: at backup-begin, where a disk can't be read); systemd would start it again. */
  async reviveLibvirtd(): Promise<void> {
    const { libvirtd } = this.lab;
    if (libvirtd.running || this.libvirtdIsDown) return;
    this.libvirtdIsDown = true;
    await libvirtd.restart();
    this.libvirtdIsDown = false;
  }

  /** Asks libvirt again as long as it is down. */
  async reached<T>(ask: () => Promise<T>): Promise<T> {
    const deadline = Date.now() + 20_000;
    for (;;) {
      try {
        return await ask();
      } catch (error) {
        if (!/connect|End of file|connection/i.test(String(error)) || Date.now() > deadline) throw error;
        await this.reviveLibvirtd();
        await sleep(200);
      }
    }
  }

  /** virsh, which may refuse. */
  async virsh(...args: string[]): Promise<string> {
    const { code, stderr } = await this.lab.libvirtd.virsh(...args);
    return code === 0 ? 'done' : `refused: ${stderr.trim()}`;
  }

  /** Ends the servers of former copies; those of the first definitions stay, because somebody may define these again. */
  async retireServers(): Promise<void> {
    const used = new Set<Copy>();
    const use = (copy: Copy): void => {
      used.add(copy);
      if (copy.backing !== null) use(copy.backing);
    };
    for (const { disks } of this.domains) for (const { copies } of disks) Object.values(copies).forEach(use);
    for (const { oldXml } of this.domains)
      for (const { image } of parseDomain(oldXml).disks) if (image !== null) use(this.named(imageName(image)));
    for (const copy of this.#copies.values()) if (!used.has(copy)) await copy.server?.close();
  }

  /** A name that no file of this run has. */
  fileName(prefix: string): string {
    return `${prefix}-${++this.#made}`;
  }

  /** A copy that does not exist yet, on a server of its own or in a plain file. */
  async makeCopy(name: string, on: 'server' | 'file', format: 'raw' | 'qcow2', content?: string): Promise<Copy> {
    const file = this.lab.path(`${this.fileName(name)}.img`);
    if (content === undefined) await must('qemu-img', 'create', '-q', '-f', format, file, String(diskBytes));
    else await must('qemu-img', 'convert', '-O', format, content, file);
    // An export does not grow, but a qcow2 image does.
    if (on === 'server' && format === 'qcow2') await truncate(file, 2 * diskBytes);
    const server = on === 'file' ? null : await this.lab.nbd({ name: this.fileName(name), file, volatileCache: true });
    const copy = { source: server?.uri ?? file, file, format, server, backing: null };
    this.#copies.set(copy.source, copy);
    return copy;
  }

  /** An overlay that somebody's snapshot makes. */
  addOverlay(file: string, backing: Copy): void {
    this.#copies.set(file, { source: file, file, format: 'qcow2', server: null, backing });
  }

  /** Protects a disk whose mirror may be written over. */
  async protect(domain: DomainInForce, { dev, copies }: DiskInForce): Promise<void> {
    await this.client.act(domain.name, 'protect', {
      disk: dev,
      mirrorXml: diskXml(copies.mirror),
      policy: domain.shape.policy,
      overwriteMirror: true,
    });
    domain.oldXml = await this.definition(domain, dev, copies.primary);
  }

  /** Defines the domain with a disk on that copy. */
  async redefine(domain: DomainInForce, dev: string, copy: Copy): Promise<void> {
    await this.define(await this.definition(domain, dev, copy));
  }

  /** The domain's definition, with a disk on that copy. */
  async definition(domain: DomainInForce, dev: string, { source, format }: Copy): Promise<string> {
    const xml = await this.reached(() => domain.guest.xml('--inactive', '--security-info'));
    return withDiskImage(xml, dev, parseImageUri(source, { format }));
  }

  async define(xml: string): Promise<void> {
    await this.lab.virsh('define', this.write('definition.xml', xml));
  }

  /** Writes a file for virsh; its path. */
  write(name: string, text: string): string {
    const path = join(this.lab.root, this.fileName(name));
    writeFileSync(path, text);
    return path;
  }

  async #addDomain(shape: DomainShape): Promise<DomainInForce> {
    const disks = await Promise.all(
      shape.disks.map(async (disk): Promise<DiskInForce> => {
        const name = `${shape.name}-${disk.dev}`;
        const { primary, mirror } = disk;
        return {
          dev: disk.dev,
          shape: disk,
          copies: {
            primary: await this.makeCopy(`${name}-primary`, primary.on, primary.format, this.lab.path('ballast')),
            mirror: await this.makeCopy(`${name}-mirror`, 'server', mirror.format),
          },
        };
      }),
    );
    const guest = await this.lab.domain({
      name: shape.name,
      cmdline: `witness.blocks=${witnessBlocks} witness.rate=20 witness.depth=${shape.depth}`,
      disks: disks.map(({ dev, shape: { bus, iothread }, copies: { primary } }) => ({
        dev,
        bus,
        iothread,
        image: imageSource(primary),
      })),
    });
    const domain = { name: shape.name, shape, guest, disks, oldXml: '', suspendAsked: false, suspendSeen: false };
    for (const disk of disks) await this.protect(domain, disk);
    return domain;
  }
}

function imageSource({ format, file, server }: Copy): ImageSource {
  return server === null ? { format, file } : { format, nbd: server.address };
}

/** As `virsh blockcopy --xml` takes it. */
export function diskXml({ format, file, server }: Copy): string {
  if (server === null)
    return `<disk type='file' device='disk'><driver name='qemu' type='${format}'/><source file='${file}'/></disk>`;
  const { address } = server;
  const host = 'socket' in address ? `<host transport='unix' socket='${address.socket}'/>` : '';
  return `<disk type='network' device='disk'><driver name='qemu' type='${format}'/><source protocol='nbd' name='${address.export}'>${host}</source></disk>`;
}
