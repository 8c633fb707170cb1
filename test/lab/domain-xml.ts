import { randomUUID } from 'node:crypto';
import type { GuestKernel } from './initramfs.ts';

/** Where a disk's data is: a file, or an export of an NBD server. */
export interface ImageSource {
  format: 'raw' | 'qcow2';
  file?: string;
  /** A block device of the host. */
  device?: string;
  /** It is LUKS, with the passphrase in this libvirt secret. */
  secret?: string;
  nbd?: NbdAddress;
  /** libvirt's `<source>` of other network storage. */
  networkXml?: string;
}

export type NbdAddress = { export: string } & ({ socket: string } | { host: string; port: number });

export interface DomainDisk {
  /** The name in libvirt and in the guest: `vda` on virtio, `sda` on scsi. */
  dev: string;
  bus: 'virtio' | 'scsi';
  image: ImageSource;
  /** Give the disk (on scsi: the controller) an I/O thread. */
  iothread?: boolean;
  /** error_policy='stop' and rerror_policy='stop': an I/O error pauses the domain. Default true. */
  stopPolicy?: boolean;
  /** QEMU's cache mode; default `none`, O_DIRECT. */
  cache?: string;
}

export interface DomainOptions {
  name: string;
  uuid?: string;
  /** Default 128. */
  memoryMiB?: number;
  disks: readonly DomainDisk[];
  /** More for the kernel's command line, such as `witness.depth=4`. `witness.disks` names all disks unless given. */
  cmdline?: string;
  serialPath: string;
  /** XML inside `<metadata>`. */
  metadata?: string;
}

/**
 * The XML of a guest that runs the witness: direct kernel boot, software emulation (a /dev/kvm that exists need not work),
 * the console in a file. The cache of translated code is small because a reset under QEMU's large default takes twice as
 * long as a boot, throwing old code away page by page (measured: 7.5 s, against 3.2 s with 16 MiB).
 */
export function domainXml(guest: GuestKernel, domain: DomainOptions): string {
  const wantsThread = domain.disks.some((disk) => disk.iothread === true);
  const extra = domain.cmdline ?? '';
  const cmdline = [
    'console=ttyS0 quiet loglevel=1 mitigations=off no_timer_check rdinit=/init',
    extra.includes('witness.disks=') ? '' : `witness.disks=${domain.disks.map((disk) => disk.dev).join()}`,
    extra,
  ];
  return `<domain type='qemu'>
  <name>${escape(domain.name)}</name>
  <uuid>${domain.uuid ?? randomUUID()}</uuid>
  ${domain.metadata === undefined ? '' : `<metadata>${domain.metadata}</metadata>`}
  <memory unit='MiB'>${domain.memoryMiB ?? 128}</memory>
  <vcpu>1</vcpu>
  ${wantsThread ? '<iothreads>1</iothreads>' : ''}
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>${escape(guest.kernel)}</kernel>
    <initrd>${escape(guest.initrd)}</initrd>
    <cmdline>${escape(cmdline.filter((part) => part !== '').join(' '))}</cmdline>
  </os>
  <features><acpi/><tcg><tb-cache unit='MiB'>16</tb-cache></tcg></features>
  <clock offset='utc'/>
  <devices>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
    <serial type='file'>
      <source path='${escape(domain.serialPath)}' append='on'/>
      <target port='0'/>
    </serial>
    ${scsiController(domain.disks)}
    ${domain.disks.map(diskXml).join('\n    ')}
  </devices>
</domain>
`;
}

function scsiController(disks: readonly DomainDisk[]): string {
  const scsi = disks.filter((disk) => disk.bus === 'scsi');
  if (scsi.length === 0) return '';
  const driver = scsi.some((disk) => disk.iothread === true) ? `<driver iothread='1'/>` : '';
  return `<controller type='scsi' index='0' model='virtio-scsi'>${driver}</controller>`;
}

function diskXml(disk: DomainDisk): string {
  const driver = [
    `name='qemu' type='${disk.image.format}' cache='${disk.cache ?? 'none'}'`,
    disk.stopPolicy === false ? '' : `error_policy='stop' rerror_policy='stop'`,
    disk.iothread === true && disk.bus === 'virtio' ? `iothread='1'` : '',
  ];
  return `<disk type='${diskType(disk.image)}' device='disk'>
      <driver ${driver.filter((part) => part !== '').join(' ')}/>
      ${sourceXml(disk.image)}
      <target dev='${disk.dev}' bus='${disk.bus}'/>
    </disk>`;
}

function diskType({ file, device }: ImageSource): string {
  if (device !== undefined) return 'block';
  return file === undefined ? 'network' : 'file';
}

function sourceXml(image: ImageSource): string {
  if (image.networkXml !== undefined) return image.networkXml;
  if (image.device !== undefined) return `<source dev='${escape(image.device)}'/>`;
  if (image.nbd === undefined) {
    if (image.file === undefined) throw new Error('a disk needs a file or an NBD export');
    const secret = image.secret === undefined ? '' : luksXml(image.secret);
    return `<source file='${escape(image.file)}'>${secret}</source>`;
  }
  const host =
    'socket' in image.nbd
      ? `<host transport='unix' socket='${escape(image.nbd.socket)}'/>`
      : `<host name='${image.nbd.host}' port='${image.nbd.port}'/>`;
  return `<source protocol='nbd' name='${escape(image.nbd.export)}'>${host}</source>`;
}

/** libvirt's `<encryption>`, by the secret's UUID. */
export function luksXml(secret: string): string {
  return `<encryption format='luks'><secret type='passphrase' uuid='${secret}'/></encryption>`;
}

function escape(text: string): string {
  return text.replace(/[&<>'"]/g, (character) => `&#${character.charCodeAt(0)};`);
}
