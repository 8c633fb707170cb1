import { z } from 'zod';
import { policies, type DeclaredDisk } from '../domain/declaration.ts';
import { imageFormats, type Image } from '../domain/image.ts';
import { engines } from '../graph/engine.ts';
import { diskStates, type Side } from './model.ts';

const secretNameSchema = z.union([z.strictObject({ uuid: z.string() }), z.strictObject({ usage: z.string() })]);

const loginSchema = z.strictObject({ username: z.string(), secret: secretNameSchema }).nullable();

const sourceSchema = z.discriminatedUnion('kind', [
  z.strictObject({ kind: z.literal('file'), path: z.string() }),
  z.strictObject({ kind: z.literal('block'), path: z.string() }),
  z.strictObject({
    kind: z.literal('nbd'),
    server: z.union([
      z.strictObject({ host: z.string(), port: z.int(), tls: z.literal(true).exactOptional() }),
      z.strictObject({ socket: z.string() }),
    ]),
    exportName: z.string(),
  }),
  z.strictObject({
    kind: z.literal('iscsi'),
    host: z.string(),
    port: z.int(),
    target: z.string(),
    lun: z.int(),
    initiator: z.string().nullable(),
    login: loginSchema,
  }),
  z.strictObject({
    kind: z.literal('rbd'),
    pool: z.string(),
    namespace: z.string().nullable(),
    image: z.string(),
    hosts: z.array(z.strictObject({ host: z.string(), port: z.int().nullable() })),
    config: z.string().nullable(),
    login: loginSchema,
  }),
]);

const imageSchema = z.strictObject({
  source: sourceSchema,
  format: z.enum(imageFormats),
  encryption: z.strictObject({ secret: secretNameSchema }).exactOptional(),
});

const copyRecordSchema = z.strictObject({
  image: imageSchema,
  /** Holds every acknowledged write. */
  current: z.boolean(),
  /** ISO time as of which a stale copy is whole; null if it is current or a mixture of times. */
  consistentAsOf: z.string().nullable(),
  /** Whether it answered when it was last used or asked; null if it never was. */
  reachable: z.boolean().nullable(),
  /** Its fingerprint when QEMU last closed it, if it has one: since then nobody should have written to it. */
  sealed: z.string().exactOptional(),
});

/**
 * How a stale copy can be mended without copying everything. While `base` is `copying`, a full sync runs; once it is `whole`, the
 * stale copy differs from the current one only in the blocks that the bitmap marks.
 */
const trackSchema = z.strictObject({
  bitmap: z.string(),
  base: z.enum(['copying', 'whole']),
  /** Why everything was or is copied, as a clause. */
  why: z.string().exactOptional(),
});

/** What the administrator (or a policy) wants of a disk now; it outlives the agent. */
const intentSchema = z.discriminatedUnion('kind', [
  z.strictObject({ kind: z.literal('protect') }),
  z.strictObject({ kind: z.literal('hold') }),
  z.strictObject({ kind: z.literal('failover') }),
  z.strictObject({ kind: z.literal('rebuild'), to: imageSchema, original: z.boolean() }),
  z.strictObject({ kind: z.literal('resync') }),
  z.strictObject({ kind: z.literal('remove') }),
]);

const diskRecordSchema = z.strictObject({
  dev: z.string(),
  primary: copyRecordSchema,
  mirror: copyRecordSchema,
  track: trackSchema.nullable(),
  /** The QEMU instance in which the disk was last seen: in another one, libvirt has opened the disk anew. */
  instance: z.string().nullable(),
  /**
   * How the domain last stopped with both copies current; null if they were not. After a clean stop they are identical, after any
   * other they may differ in what the guest was never told to be written. `primary` is the primary's fingerprint then. The next
   * start uses it up, and only that one (isFirstStart).
   */
  atStop: z.strictObject({ clean: z.boolean(), primary: z.string() }).nullable(),
  /** What wrote to both copies when they were last current. */
  engine: z.enum(engines).default('quorum'),
  /** libvirt's names of the primary's nodes, and of its backing files', when the domain was moved off it, topmost first: a rebuild needs them again. */
  layerNames: z.array(z.string()),
  intent: intentSchema,
  /** Where later rebuilds put the new primary, with {domain}, {dev} and {n}. */
  rebuildTo: z.string().nullable(),
  /** Primaries of former days: nobody must start from them. */
  retired: z.array(imageSchema),
  /** Rebuild without being asked. */
  rebuildAuto: z.boolean(),
  /** How many rebuilds were begun; the next one's {n} is one more. */
  rebuilds: z.int(),
  /** Why the mirror can't be had, because another disk uses it; null if it is this disk's own. */
  contested: z.string().nullable().default(null),
  /** A policy file began its protection: its definition need not declare it. */
  byRule: z.boolean().default(false),
  /** Somebody has said that the mirror may be in clear though the disk is encrypted. */
  unencryptedMirror: z.boolean().default(false),
  exposedSince: z.string().nullable(),
  /** The state that was last shown, since when, and why. */
  state: z.enum(diskStates),
  since: z.string(),
  reason: z.string().nullable(),
});

/** The agent has had libvirt save the domain, or is about to, and owes it the start from that save. */
const restoreOwedSchema = z.strictObject({
  /** Why it can't be started; from then on it is the administrator's. */
  failed: z.string().nullable(),
  /** Its user had suspended it, and it stays so. */
  suspended: z.boolean().default(false),
  /** What they had instead of the stop policy, for a start as it was. */
  disks: z.array(
    z.strictObject({ dev: z.string(), errorPolicy: z.string().nullable(), readErrorPolicy: z.string().nullable() }),
  ),
});

/** What the live graph can't tell about a domain, and must never be wrong. */
export const domainRecordSchema = z.strictObject({
  version: z.literal(1, {
    error: ({ input }) => `it is of version ${String(input)}, and this virt-cdp reads version 1`,
  }),
  uuid: z.string(),
  name: z.string(),
  policy: z.enum(policies),
  /** The last start of the domain that this record takes into account (src/store/start-marker.ts). */
  lastStart: z.string().nullable(),
  disks: z.array(diskRecordSchema),
  restoreOwed: restoreOwedSchema.nullable().default(null),
});

export type DomainRecordSchema = typeof domainRecordSchema;
export type DomainRecord = z.infer<DomainRecordSchema>;
export type OwedRestore = z.infer<typeof restoreOwedSchema>;
export type DiskRecord = z.infer<typeof diskRecordSchema>;
export type CopyRecord = z.infer<typeof copyRecordSchema>;
export type AtStop = NonNullable<DiskRecord['atStop']>;
export type Intent = z.infer<typeof intentSchema>;

/** A disk at the beginning of its protection: only the primary is current, and nothing is known of the mirror. */
export function newDiskRecord(
  { dev, mirror, unencryptedMirror, rebuild }: DeclaredDisk,
  primary: Image,
  running: boolean,
): DiskRecord {
  return {
    dev,
    primary: { image: primary, current: true, consistentAsOf: null, reachable: null },
    mirror: { image: mirror, current: false, consistentAsOf: null, reachable: null },
    track: null,
    instance: null,
    atStop: null,
    engine: 'quorum',
    layerNames: [],
    intent: { kind: 'protect' },
    rebuildTo: rebuild?.to ?? null,
    rebuildAuto: rebuild?.auto ?? false,
    rebuilds: 0,
    retired: [],
    contested: null,
    byRule: false,
    unencryptedMirror: unencryptedMirror === true,
    exposedSince: null,
    state: running ? 'waiting' : 'stopped',
    since: new Date().toISOString(),
    reason: null,
  };
}

/** The record with what a copy is like now that it is closed; undefined: nobody can tell. */
export function withSeal(record: DomainRecord, dev: string, side: Side, fingerprint: string | undefined): DomainRecord {
  const disks = record.disks.map((disk) => {
    const copy = unsealed(disk[side]);
    return disk.dev === dev
      ? { ...disk, [side]: { ...copy, ...(fingerprint !== undefined && { sealed: fingerprint }) } }
      : disk;
  });
  return { ...record, disks };
}

/** What was planned to be recorded, with the seals that stale copies have by now: a plan knows none that is made while it is carried out. */
export function withSealsOf(now: DomainRecord, planned: DomainRecord): DomainRecord {
  const disks = planned.disks.map((disk) => {
    const known = now.disks.find(({ dev }) => dev === disk.dev);
    return known === undefined
      ? disk
      : { ...disk, primary: sealedAs(known.primary, disk.primary), mirror: sealedAs(known.mirror, disk.mirror) };
  });
  return { ...planned, disks };
}

function sealedAs({ sealed }: CopyRecord, planned: CopyRecord): CopyRecord {
  return planned.current || sealed === undefined ? planned : { ...planned, sealed };
}

/** A copy that has all that was acknowledged, and is open. */
export function currentCopy(copy: CopyRecord): CopyRecord {
  return { ...unsealed(copy), current: true, consistentAsOf: null };
}

function unsealed({ image, current, consistentAsOf, reachable }: CopyRecord): CopyRecord {
  return { image, current, consistentAsOf, reachable };
}

/**
 * The record in the light of a start that it may not know of: since then the guest has written to one copy alone, the primary if
 * both were current.
 */
export function sinceStart(record: DomainRecord, start: string | null): DomainRecord {
  if (start === record.lastStart) return record;
  const disks = record.disks.map((disk) => ({
    ...(disk.primary.current && disk.mirror.current
      ? { ...disk, mirror: { ...disk.mirror, current: false, consistentAsOf: disk.since }, track: null }
      : disk),
    atStop: null,
  }));
  return { ...record, lastStart: start, disks };
}

/**
 * The record of a domain whose end nobody saw. A mirror job that fails keeps no write from being acknowledged, so a mirror that was
 * current when it was last looked at may have missed some, and nobody knows since when.
 */
export function endedUnseen(disk: DiskRecord): DiskRecord {
  if (disk.engine !== 'mirror' || disk.state === 'stopped' || !disk.primary.current || !disk.mirror.current)
    return disk;
  return { ...disk, mirror: { ...disk.mirror, current: false, consistentAsOf: null }, track: null, atStop: null };
}

/** The record of a domain that went on elsewhere: there it has the primary alone, and copies that were equal are so no more. */
export function movedAway(record: DomainRecord, at: string): DomainRecord {
  const disks = record.disks.map((disk) =>
    disk.primary.current && disk.mirror.current
      ? { ...disk, mirror: { ...disk.mirror, current: false, consistentAsOf: at }, track: null, atStop: null }
      : // Nor is a bitmap in an image to be trusted that others have had meanwhile.
        { ...disk, track: null },
  );
  return { ...record, disks };
}

/** The record of a domain that comes from another host, as this host has it until its guest has arrived. */
export function arriving(record: DomainRecord, at: string): DomainRecord {
  const { disks } = movedAway(record, at);
  const unseen = { instance: null, track: null, atStop: null, contested: null, reason: null };
  return {
    ...record,
    restoreOwed: null,
    disks: disks.map((disk) => ({
      ...disk,
      ...unseen,
      // With policy strict the guest does not run there on the primary alone either.
      exposedSince: record.policy === 'strict' ? at : disk.exposedSince,
      state: 'stopped',
      since: at,
    })),
  };
}

/**
 * Whether the hook saw this start, and it is the first since the record was written or read: in an earlier one the guest may have
 * written, and the primary's fingerprint is not sure to tell. A power cut can take a file's time back, and leave what was written.
 */
export function isFirstStart({ lastStart }: DomainRecord, start: string | null): boolean {
  return start !== null && start !== lastStart;
}
