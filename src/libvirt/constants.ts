/** libvirt's own numbers under libvirt's own names (include/libvirt/libvirt-domain.h, libvirt-secret.h). */

export const domainRunState = {
  running: 1,
  blocked: 2,
  paused: 3,
  shutdown: 4,
  shutoff: 5,
  crashed: 6,
  pmsuspended: 7,
} as const;
/** A value of `domainRunState`. */
export type DomainRunState = (typeof domainRunState)[keyof typeof domainRunState];

/** Why a domain is `domainRunState.paused`. */
export const pausedReason = {
  unknown: 0,
  user: 1,
  migration: 2,
  save: 3,
  dump: 4,
  ioError: 5,
  watchdog: 6,
  fromSnapshot: 7,
  shuttingDown: 8,
  snapshot: 9,
  crashed: 10,
  startingUp: 11,
  postcopy: 12,
  postcopyFailed: 13,
} as const;

/** Why a domain is `domainRunState.shutoff`. */
export const shutoffReason = { migrated: 4, failed: 6 } as const;

/** What a lifecycle event says happened. */
export const lifecycleEvent = {
  defined: 0,
  undefined: 1,
  started: 2,
  suspended: 3,
  resumed: 4,
  stopped: 5,
  shutdown: 6,
  pmsuspended: 7,
  crashed: 8,
} as const;

/** Details of `lifecycleEvent.started`. */
export const startedDetail = { booted: 0, migrated: 1, restored: 2, fromSnapshot: 3, wakeup: 4, recreated: 5 } as const;

/** Details of `lifecycleEvent.suspended`. */
export const suspendedDetail = {
  paused: 0,
  migrated: 1,
  ioError: 2,
  watchdog: 3,
  restored: 4,
  fromSnapshot: 5,
  apiError: 6,
  postcopy: 7,
  postcopyFailed: 8,
} as const;

/** Details of `lifecycleEvent.stopped`. */
export const stoppedDetail = {
  shutdown: 0,
  destroyed: 1,
  crashed: 2,
  migrated: 3,
  saved: 4,
  failed: 5,
  fromSnapshot: 6,
  recreated: 7,
} as const;

export const ioErrorAction = { none: 0, pause: 1, report: 2 } as const;

export const blockJobType = { unknown: 0, pull: 1, copy: 2, commit: 3, activeCommit: 4, backup: 5 } as const;

export const blockJobStatus = { completed: 0, failed: 1, canceled: 2, ready: 3 } as const;

/** Types of a domain's job (virDomainJobType). */
export const jobType = { none: 0, bounded: 1, unbounded: 2, completed: 3, failed: 4, cancelled: 5 } as const;

/** What a domain's job does (virDomainJobOperation). */
export const jobOperation = { save: 2, migrationOut: 5, dump: 8 } as const;

/** Tags of `memoryStats` (virDomainMemoryStatTags). */
export const memoryStat = { rss: 7 } as const;

/** Flags of `updateDevice`. */
export const deviceModify = { current: 0, live: 1, config: 2, force: 4 } as const;

/** Flags of `undefine`. */
export const undefineFlag = {
  managedSave: 1,
  snapshotsMetadata: 2,
  nvram: 4,
  keepNvram: 8,
  checkpointsMetadata: 16,
} as const;

export const metadataType = { description: 0, title: 1, element: 2 } as const;

export const secretUsage = { none: 0, volume: 1, ceph: 2, iscsi: 3, tls: 4, vtpm: 5 } as const;
