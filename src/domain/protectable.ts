import { attributeOf, childOf, childrenOf, type XmlElement } from './xml.ts';

/** Why a disk can't be protected, as a sentence that begins with its target, and what to do about it. */
export interface Obstacle {
  why: string;
  hint: string;
}

/** The devices under which the block graph was changed in trials; the others' device models may not bear it. */
const supportedBuses = ['virtio', 'scsi'];

/** Null for a disk that can be protected; `sourceProblem` is what readDiskImage says against its source. */
export function obstacleTo(disk: XmlElement, devices: XmlElement, sourceProblem: string | null): Obstacle | null {
  const dev = attributeOf(childOf(disk, 'target'), 'dev') ?? 'it';
  const found =
    ofDevice(disk) ?? ofType(disk) ?? ofUse(disk) ?? ofBus(disk, devices) ?? ofSource(sourceProblem) ?? ofDriver(disk);
  return found === null ? null : { why: `${dev} ${found.why}`, hint: found.hint };
}

const otherDisks = "protect the domain's other disks; virsh domblklist names them";

function ofDevice(disk: XmlElement): Obstacle | null {
  const device = attributeOf(disk, 'device') ?? 'disk';
  switch (device) {
    case 'disk':
      return null;
    case 'cdrom':
      return { why: 'is a cdrom: there are no writes to protect', hint: otherDisks };
    case 'floppy':
      return { why: 'is a floppy, and only ordinary disks can be protected', hint: otherDisks };
    case 'lun':
      return {
        why: "is a lun that is passed through (device='lun'): the guest's SCSI commands go past all that could copy its writes",
        hint: "device='disk' (virsh edit) gives the guest the same device as an ordinary disk",
      };
    default:
      return { why: `is a ${device}, and only ordinary disks can be protected`, hint: otherDisks };
  }
}

/** Types whose writes don't pass QEMU's block layer, or which were not tried; what else is unknown is said of the source. */
function ofType(disk: XmlElement): Obstacle | null {
  switch (attributeOf(disk, 'type') ?? 'file') {
    case 'vhostuser':
      return {
        why: "is served by another process (type='vhostuser'): its writes don't pass QEMU, which could copy them",
        hint: 'give the guest the image itself, as a file, a block device or an NBD export',
      };
    case 'vhostvdpa':
      return {
        why: "is served by hardware (type='vhostvdpa'): its writes don't pass QEMU, which could copy them",
        hint: "give the guest the device as a block device of the host (type='block')",
      };
    case 'nvme':
      return {
        why: "is an NVMe controller that is taken from the host (type='nvme'), which is not supported",
        hint: "leave it to the host's driver, and give the guest /dev/nvmeXnY with type='block'",
      };
    default:
      return null;
  }
}

function ofUse(disk: XmlElement): Obstacle | null {
  if (childOf(disk, 'readonly') !== null) {
    return { why: 'is read-only: there are no writes to protect', hint: otherDisks };
  }
  if (childOf(disk, 'shareable') !== null) {
    return {
      why: "is shareable: other domains' writes would miss the mirror",
      hint: 'if no other domain uses it, take <shareable/> away with virsh edit',
    };
  }
  if (childOf(disk, 'transient') !== null) {
    return {
      why: 'is transient: its writes are meant to be dropped',
      hint: 'if they are not, take <transient/> away with virsh edit',
    };
  }
  return null;
}

function ofBus(disk: XmlElement, devices: XmlElement): Obstacle | null {
  const bus = attributeOf(childOf(disk, 'target'), 'bus') ?? '';
  if (!supportedBuses.includes(bus)) {
    return {
      why: `is on the bus '${bus}', and only virtio and scsi are supported`,
      hint: "if the guest has the driver: bus='virtio', without the former <address>, by virsh edit",
    };
  }
  if (bus === 'scsi' && hasIothread(scsiController(disk, devices))) {
    return {
      why: "is on a virtio-scsi controller with an iothread, under which QEMU can't change the block graph",
      hint: "take the controller's iothread away, or put the disk on the bus virtio, by virsh edit",
    };
  }
  return null;
}

function ofSource(problem: string | null): Obstacle | null {
  if (problem === null) return null;
  return {
    why: `can't be protected: ${problem}`,
    hint: 'raw and qcow2 images on files, block devices, NBD exports, iSCSI LUNs and Ceph RBD images can be',
  };
}

function ofDriver(disk: XmlElement): Obstacle | null {
  const driver = childOf(disk, 'driver');
  if (driver !== null && childOf(driver, 'iothreads') !== null) {
    return {
      why: "is served by several iothreads, under which QEMU can't change the block graph safely",
      hint: "give it one, by <driver iothread='N'>, with virsh edit",
    };
  }
  if (attributeOf(driver, 'cache') === 'unsafe') {
    return {
      why: "ignores the guest's flushes (cache='unsafe'): after a power cut it would lack what its mirror has",
      hint: "cache='none' or 'writeback', with virsh edit",
    };
  }
  if (attributeOf(driver, 'copy_on_read') === 'on') {
    return {
      why: "copies on read, through a node that libvirt's own jobs ask for and a failover takes away",
      hint: "take copy_on_read='on' away with virsh edit",
    };
  }
  return null;
}

function scsiController(disk: XmlElement, devices: XmlElement): XmlElement | null {
  const index = attributeOf(childOf(disk, 'address'), 'controller') ?? '0';
  const controllers = childrenOf(devices, 'controller').filter((other) => attributeOf(other, 'type') === 'scsi');
  return controllers.find((other) => (attributeOf(other, 'index') ?? '0') === index) ?? null;
}

function hasIothread(controller: XmlElement | null): boolean {
  const driver = controller === null ? null : childOf(controller, 'driver');
  return driver !== null && (driver.attributes.has('iothread') || childOf(driver, 'iothreads') !== null);
}
