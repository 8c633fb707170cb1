/**
 * Every procedure that is called: its number, arguments and result, as in src/remote/remote_protocol.x and
 * src/remote/qemu_protocol.x. A struct with one field is that field on the wire.
 */
import { anyParameter, bytes, domain, secret, string, ullongParameter, uuid } from './types.ts';
import type { DomainRef } from './types.ts';
import { array, flag, int, nothing, opaque, optional, struct, uint } from './xdr.ts';
import type { Codec } from './xdr.ts';

export const program = { remote: 0x20008086, qemu: 0x20008087, keepalive: 0x6b656570 } as const;
export const programVersion = 1;

export interface Procedure<A, R> {
  name: string;
  program: number;
  number: number;
  args: Codec<A>;
  result: Codec<R>;
}

/** Whatever carries a call to the daemon and brings back the answer. */
export interface Caller {
  call<A, R>(procedure: Procedure<A, R>, args: A, deadlineMs?: number): Promise<R>;
}

export const defaultDeadlineMs = 30_000;

const remote = <A, R>(number: number, name: string, args: Codec<A>, result: Codec<R>): Procedure<A, R> => ({
  name,
  program: program.remote,
  number,
  args,
  result,
});
const qemu = <A, R>(number: number, name: string, args: Codec<A>, result: Codec<R>): Procedure<A, R> => ({
  ...remote(number, name, args, result),
  program: program.qemu,
});

interface OnDomain {
  dom: DomainRef;
  flags: number;
}
interface OnDisk extends OnDomain {
  disk: string;
}
const onDomain = struct<OnDomain>({ dom: domain, flags: uint });
interface XmlOnDomain extends OnDomain {
  xml: string | null;
}
const withXml = struct<XmlOnDomain>({ dom: domain, xml: optional(string), flags: uint });
const onDisk = struct<OnDisk>({ dom: domain, disk: string, flags: uint });
const domainState = struct({ state: int, reason: int });
const domainList = struct({ domains: array(domain, 16384), count: uint });
const jobInfo = struct({
  type: int,
  timeElapsed: bytes,
  timeRemaining: bytes,
  dataTotal: bytes,
  dataProcessed: bytes,
  dataRemaining: bytes,
  memTotal: bytes,
  memProcessed: bytes,
  memRemaining: bytes,
  fileTotal: bytes,
  fileProcessed: bytes,
  fileRemaining: bytes,
});
const blockJobInfo = struct({ found: flag, type: int, bandwidth: bytes, cur: bytes, end: bytes });

export const procedures = {
  connectOpen: remote(1, 'connectOpen', struct({ uri: optional(string), flags: uint }), nothing),
  authList: remote(66, 'authList', nothing, array(int, 20)),
  version: remote(157, 'connectGetLibVersion', nothing, bytes),
  capabilities: remote(7, 'connectGetCapabilities', nothing, string),
  eventRegister: remote(
    316,
    'connectDomainEventCallbackRegisterAny',
    struct({ event: int, dom: optional(domain) }),
    int,
  ),

  listDomains: remote(273, 'connectListAllDomains', struct({ wanted: flag, flags: uint }), domainList),
  lookupById: remote(22, 'domainLookupByID', int, domain),
  lookupByName: remote(23, 'domainLookupByName', string, domain),
  lookupByUuid: remote(24, 'domainLookupByUUID', uuid, domain),

  xml: remote(14, 'domainGetXMLDesc', onDomain, string),
  defineXml: remote(350, 'domainDefineXMLFlags', struct({ xml: string, flags: uint }), domain),
  undefine: remote(231, 'domainUndefineFlags', onDomain, nothing),
  state: remote(212, 'domainGetState', onDomain, domainState),
  isPersistent: remote(151, 'domainIsPersistent', domain, flag),

  create: remote(196, 'domainCreateWithFlags', onDomain, domain),
  suspend: remote(34, 'domainSuspend', domain, nothing),
  resume: remote(28, 'domainResume', domain, nothing),
  destroy: remote(234, 'domainDestroyFlags', onDomain, nothing),
  shutdown: remote(258, 'domainShutdownFlags', onDomain, nothing),
  reset: remote(245, 'domainReset', onDomain, nothing),

  save: remote(
    232,
    'domainSaveFlags',
    struct({ dom: domain, path: string, xml: optional(string), flags: uint }),
    nothing,
  ),
  restore: remote(233, 'domainRestoreFlags', struct({ path: string, xml: optional(string), flags: uint }), nothing),
  managedSave: remote(182, 'domainManagedSave', onDomain, nothing),
  hasManagedSave: remote(183, 'domainHasManagedSaveImage', onDomain, flag),
  managedSaveRemove: remote(184, 'domainManagedSaveRemove', onDomain, nothing),
  managedSaveXml: remote(388, 'domainManagedSaveGetXMLDesc', onDomain, string),
  managedSaveDefineXml: remote(389, 'domainManagedSaveDefineXML', withXml, nothing),

  jobInfo: remote(163, 'domainGetJobInfo', domain, jobInfo),
  jobStats: remote(298, 'domainGetJobStats', onDomain, struct({ type: int, parameters: array(anyParameter, 64) })),
  abortJob: remote(164, 'domainAbortJob', domain, nothing),
  memoryStats: remote(
    159,
    'domainMemoryStats',
    struct({ dom: domain, maxStats: uint, flags: uint }),
    array(struct({ tag: int, value: bytes }), 1024),
  ),

  setMetadata: remote(
    264,
    'domainSetMetadata',
    struct({
      dom: domain,
      type: int,
      xml: optional(string),
      key: optional(string),
      uri: optional(string),
      flags: uint,
    }),
    nothing,
  ),
  getMetadata: remote(
    265,
    'domainGetMetadata',
    struct({ dom: domain, type: int, uri: optional(string), flags: uint }),
    string,
  ),
  updateDevice: remote(174, 'domainUpdateDeviceFlags', struct({ dom: domain, xml: string, flags: uint }), nothing),

  blockCopy: remote(
    345,
    'domainBlockCopy',
    struct({ dom: domain, disk: string, destXml: string, parameters: array(ullongParameter, 16), flags: uint }),
    nothing,
  ),
  blockJobAbort: remote(237, 'domainBlockJobAbort', onDisk, nothing),
  blockJobInfo: remote(238, 'domainGetBlockJobInfo', onDisk, blockJobInfo),

  secretByUuid: remote(141, 'secretLookupByUUID', uuid, secret),
  secretByUsage: remote(147, 'secretLookupByUsage', struct({ type: int, id: string }), secret),
  secretValue: remote(145, 'secretGetValue', struct({ secret, flags: uint }), opaque(65536)),

  monitorCommand: qemu(1, 'domainMonitorCommand', struct({ dom: domain, command: string, flags: uint }), string),
  monitorEventRegister: qemu(
    4,
    'connectDomainMonitorEventRegister',
    struct({ dom: optional(domain), event: optional(string), flags: uint }),
    int,
  ),
};
