import { closeSync, constants, copyFileSync, mkdirSync, openSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Agent, type AgentOptions } from './agent.ts';
import { type DomainDisk, type DomainOptions, domainXml, type ImageSource } from './domain-xml.ts';
import { Guest } from './guest.ts';
import { type GuestKernel, guestKernel } from './initramfs.ts';
import { Libvirtd, type QemuAs } from './libvirtd.ts';
import { createImage, type NbdOptions, NbdServer } from './storage.ts';

export interface LabDomain extends Omit<DomainOptions, 'serialPath'> {
  /** Start it, and wait for its witness. Default true. */
  start?: boolean;
}

export interface LabNbd extends Partial<Omit<NbdOptions, 'scratch' | 'namespace'>> {
  /** Names the export, the socket, and the file if none is given. */
  name: string;
  /** For a file that is made: its size; default 64 MiB. */
  sizeBytes?: number;
  /** For a file that is made: its format; default raw. */
  format?: 'raw' | 'qcow2';
}

const defaultSizeBytes = 64 << 20;

/**
 * A laboratory on this machine: a libvirtd of its own, guests whose every acknowledged write is known, storage that breaks
 * on command, and the agent. Needs root and what install.sh installs. Everything ends with `close()`.
 */
export class Lab {
  readonly libvirtd: Libvirtd;
  readonly #kernel: GuestKernel;
  readonly #guests: Guest[] = [];
  readonly #servers: NbdServer[] = [];
  readonly #agents: Agent[] = [];

  private constructor(libvirtd: Libvirtd, kernel: GuestKernel) {
    this.libvirtd = libvirtd;
    this.#kernel = kernel;
    for (const folder of ['images', 'serial', 'nbd']) mkdirSync(join(this.root, folder));
  }

  static async start({ qemuAs = 'root' }: { qemuAs?: QemuAs } = {}): Promise<Lab> {
    if (process.getuid?.() !== 0) throw new Error('the laboratory needs root');
    const kernel = await guestKernel();
    const libvirtd = await Libvirtd.start({ qemuAs });
    return new Lab(libvirtd, qemuAs === 'root' ? kernel : copyKernel(kernel, libvirtd.root));
  }

  /** The scratch folder, removed at the end. */
  get root(): string {
    return this.libvirtd.root;
  }

  /** A path in the scratch folder for an image that does not exist yet. */
  path(fileName: string): string {
    return join(this.root, 'images', fileName);
  }

  /** A new, empty image in the scratch folder; default 64 MiB. */
  async image(
    fileName: string,
    format: 'raw' | 'qcow2' = 'raw',
    sizeBytes = defaultSizeBytes,
  ): Promise<ImageSource & { file: string }> {
    return { format, file: await createImage(this.path(fileName), format, sizeBytes) };
  }

  /** An NBD server, on a unix socket unless told otherwise, of a new image unless a file is given. */
  async nbd(options: LabNbd): Promise<NbdServer> {
    const { name, sizeBytes = defaultSizeBytes, format = 'raw', ...rest } = options;
    const file = options.file ?? options.folder ?? (await createImage(this.path(`${name}.img`), format, sizeBytes));
    const scratch = join(this.root, 'nbd');
    const server = await NbdServer.start({
      exportName: name,
      listen: { socket: join(scratch, `${name}.sock`) },
      scratch,
      namespace: this.libvirtd.namespace,
      ...rest,
      file,
    });
    this.#servers.push(server);
    return server;
  }

  /** Defines a guest, and boots it unless told otherwise. */
  async domain(options: LabDomain): Promise<Guest> {
    const { start = true, ...domain } = options;
    const serialPath = join(this.root, 'serial', domain.name);
    writeFileSync(serialPath, '', { flag: 'a' });
    const disks = domain.disks.map((disk) => ({ cache: cacheMode(disk), ...disk }));
    const xmlPath = join(this.root, `${domain.name}.xml`);
    writeFileSync(xmlPath, domainXml(this.#kernel, { ...domain, disks, serialPath }));
    await this.libvirtd.mustVirsh('define', xmlPath);
    const guest = new Guest(this.libvirtd, { name: domain.name, disks, serialPath });
    this.#guests.push(guest);
    if (start) await guest.start();
    return guest;
  }

  /** The product's agent, on this laboratory's libvirtd. */
  async agent(options: AgentOptions = {}): Promise<Agent> {
    const agent = new Agent(this.libvirtd, options);
    this.#agents.push(agent);
    await agent.start();
    return agent;
  }

  async virsh(...args: string[]): Promise<string> {
    return this.libvirtd.mustVirsh(...args);
  }

  async close(): Promise<void> {
    for (const guest of this.#guests) guest.close();
    try {
      await Promise.all(this.#agents.map((agent) => agent.close()));
      await Promise.all(this.#servers.map((server) => server.close()));
    } finally {
      await this.libvirtd.close();
    }
  }
}

/** libvirt gives the files that a guest boots from to QEMU's user, too. */
function copyKernel(kernel: GuestKernel, folder: string): GuestKernel {
  const copy = { kernel: join(folder, 'kernel'), initrd: join(folder, 'initrd') };
  copyFileSync(kernel.kernel, copy.kernel);
  copyFileSync(kernel.initrd, copy.initrd);
  return copy;
}

/** `none`, except where the file system refuses O_DIRECT, as tmpfs did before Linux 6.6. */
function cacheMode(disk: DomainDisk): string {
  if (disk.image.file === undefined) return 'none';
  try {
    closeSync(openSync(disk.image.file, constants.O_RDONLY | constants.O_DIRECT));
    return 'none';
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EINVAL') return 'writeback';
    return 'none';
  }
}
