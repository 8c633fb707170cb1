import { open } from 'node:fs/promises';

/**
 * A guest in 30 bytes: its BIOS writes the boot sector to the disk's third sector once a second. It needs 16 MiB of
 * memory and hardly any CPU, so that a machine can run many.
 */
const program = [
  ...[0x31, 0xc0], // xor ax, ax
  ...[0x8e, 0xd8], // mov ds, ax
  ...[0x8e, 0xc0], // mov es, ax
  0xfb, // sti
  ...[0xb8, 0x01, 0x03], // again: mov ax, 0301h: write one sector
  ...[0xbb, 0x00, 0x7c], // mov bx, 7c00h: the boot sector
  ...[0xb9, 0x03, 0x00], // mov cx, 3
  ...[0xba, 0x80, 0x00], // mov dx, 80h: the first disk
  ...[0xcd, 0x13], // int 13h
  ...[0xb9, 0x12, 0x00], // mov cx, 18
  0xf4, // tick: hlt, until the next tick of the clock
  ...[0xe2, 0xfd], // loop tick
  ...[0xeb, 0xea], // jmp again
];

/** Makes a raw image bootable with it. */
export async function writeBootSector(path: string): Promise<void> {
  const sector = Buffer.alloc(512);
  Buffer.from(program).copy(sector);
  sector.writeUInt16LE(0xaa55, 510);
  const file = await open(path, 'r+');
  try {
    await file.write(sector, 0, sector.length, 0);
  } finally {
    await file.close();
  }
}

/** A domain that boots from an NBD export. */
export function tinyDomainXml(
  name: string,
  { export: exportName, socket }: { export: string; socket: string },
): string {
  return `<domain type='qemu'>
  <name>${name}</name>
  <memory unit='MiB'>16</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type><boot dev='hd'/></os>
  <features><acpi/><tcg><tb-cache unit='MiB'>4</tb-cache></tcg></features>
  <devices>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
    <disk type='network' device='disk'>
      <driver name='qemu' type='raw' cache='none' error_policy='stop' rerror_policy='stop'/>
      <source protocol='nbd' name='${exportName}'><host transport='unix' socket='${socket}'/></source>
      <target dev='vda' bus='virtio'/>
    </disk>
  </devices>
</domain>
`;
}
