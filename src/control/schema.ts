/**
 * The forms of everything that goes over the agent's socket. Client and server both check with these, so that neither
 * a stranger's request nor a bug of the other side goes further than here. The interfaces that the rest of the program
 * uses are in api.ts and ../protection/model.ts; the types at the end fail to compile if the two ever differ.
 */
import { z } from 'zod';
import type {
  CopyStatus,
  DiskStatus,
  DiskVerdict,
  DomainStatus,
  JobStatus,
  ProtectionEvent,
} from '../protection/model.ts';
import { engines } from '../graph/engine.ts';
import { diskStates, eventNames, guarantees } from '../protection/model.ts';
import { domainRecordSchema } from '../protection/record.ts';
import type {
  Action,
  ActionArguments,
  ActionResult,
  AgentReport,
  AgentVersion,
  ArrivalMessages,
  ErrorAnswer,
  HookCall,
  PolicyReport,
} from './api.ts';
import type { HookAnswer } from '../protection/starts/hook-answer.ts';

const bytes = z.int().nonnegative();
const isoTime = z.iso.datetime();

export const copyStatusSchema = z.strictObject({
  source: z.string(),
  current: z.boolean(),
  reachable: z.boolean().nullable(),
  consistentAsOf: isoTime.nullable(),
  mixture: z.literal(true).exactOptional(),
});

export const jobStatusSchema = z.strictObject({
  kind: z.enum(['full-sync', 'delta-sync', 'rebuild', 'verify']),
  done: bytes,
  total: bytes,
});

export const diskStatusSchema = z.strictObject({
  dev: z.string(),
  state: z.enum(diskStates),
  since: isoTime,
  reason: z.string().nullable(),
  primary: copyStatusSchema,
  mirror: copyStatusSchema,
  runningOn: z.enum(['both', 'primary', 'mirror', 'none']),
  exposedSince: isoTime.nullable(),
  exposedBytes: bytes.nullable(),
  job: jobStatusSchema.nullable(),
});

export const domainStatusSchema = z.strictObject({
  domain: z.string(),
  uuid: z.string(),
  running: z.boolean(),
  state: z.enum(diskStates),
  policy: z.enum(['available', 'strict']),
  engine: z.enum(engines),
  guarantee: z.enum(guarantees),
  disks: z.array(diskStatusSchema),
  problem: z.string().exactOptional(),
});

/** `GET /v1/domains`, `virt-cdp status --json` and `virt-cdp list --json`. */
export const domainStatusesSchema = z.array(domainStatusSchema);

/** One server-sent event, and one line of `virt-cdp events --json`. */
export const protectionEventSchema = z.strictObject({
  seq: z.int().nonnegative(),
  time: isoTime,
  domain: z.string(),
  disk: z.string().nullable(),
  event: z.enum(eventNames),
  from: z.enum(diskStates).nullable(),
  to: z.enum(diskStates).nullable(),
  detail: z.record(z.string(), z.unknown()),
});

const disk = z.string().min(1);

/** The body of `POST /v1/domains/NAME/ACTION`, by action. */
export const actionArgumentsSchemas = {
  protect: z
    .strictObject({
      disk,
      mirror: z.string().min(1).exactOptional(),
      mirrorXml: z.string().min(1).exactOptional(),
      policy: z.enum(['available', 'strict']).exactOptional(),
      create: z.boolean().exactOptional(),
      overwriteMirror: z.boolean().exactOptional(),
      unencryptedMirror: z.boolean().exactOptional(),
      rebuildTo: z.string().min(1).exactOptional(),
      stopPolicyBy: z.literal('save-restore').exactOptional(),
      pauseAgreed: z.boolean().exactOptional(),
    })
    .refine((args) => args.mirror === undefined || args.mirrorXml === undefined, {
      error: 'only one of mirror and mirrorXml can be given',
    })
    .refine((args) => [args.mirror, args.mirrorXml, args.stopPolicyBy].some((given) => given !== undefined), {
      error: 'mirror or mirrorXml must be given',
    }),
  unprotect: z.strictObject({ disk: disk.exactOptional(), keep: z.literal('mirror').exactOptional() }),
  hold: z.strictObject({}),
  release: z.strictObject({}),
  failover: z.strictObject({ disk: disk.exactOptional(), acceptDataLoss: z.boolean().exactOptional() }),
  rebuild: z
    .strictObject({
      disk: disk.exactOptional(),
      to: z.string().min(1).exactOptional(),
      toXml: z.string().min(1).exactOptional(),
      format: z.enum(['raw', 'qcow2']).exactOptional(),
    })
    .refine((args) => args.to === undefined || args.toXml === undefined, {
      error: 'only one of to and toXml can be given',
    }),
  resync: z.strictObject({ disk: disk.exactOptional(), full: z.boolean().exactOptional() }),
  start: z.strictObject({ acceptDataLoss: z.boolean().exactOptional() }),
  migrate: z.strictObject({
    to: z.string().min(1),
    destSocket: z.string().min(1).exactOptional(),
    unprotected: z.boolean().exactOptional(),
    options: z.array(z.string()).exactOptional(),
  }),
  verify: z.strictObject({
    disk: disk.exactOptional(),
    maxBytesPerS: bytes.exactOptional(),
    repair: z.boolean().exactOptional(),
  }),
} as const satisfies Record<Action, z.ZodType>;

export const diskVerdictSchema = z.strictObject({
  dev: z.string(),
  asOf: isoTime,
  comparedBytes: bytes,
  differences: z.array(z.strictObject({ offset: bytes, length: bytes })),
  differingBytes: bytes,
  unsettledBytes: bytes,
  complete: z.boolean(),
  repairing: z.boolean(),
});

export const actionResultSchema = z.strictObject({
  message: z.string(),
  warnings: z.array(z.string()),
  status: domainStatusSchema.nullable(),
  verdicts: z.array(diskVerdictSchema).exactOptional(),
});

const ticket = z.string().min(1);

/** The body of `POST /v1/arrivals/MESSAGE`, by message. */
export const arrivalSchemas = {
  expect: z.strictObject({ ticket, record: domainRecordSchema }),
  handOver: z.strictObject({ ticket, identical: z.array(z.string()) }),
  cancel: z.strictObject({ ticket }),
} as const satisfies Record<keyof ArrivalMessages, z.ZodType>;

export const arrivalResultSchema = domainStatusSchema.nullable();

/** The body of `POST /v1/hook/OPERATION`; the operation itself is in the path. */
export const hookBodySchema = z.strictObject({
  subOperation: z.string(),
  extra: z.string(),
  domainXml: z.string(),
});

export const hookAnswerSchema = z.strictObject({
  xml: z.string().nullable(),
  refuse: z.strictObject({ message: z.string() }).nullable(),
});

export const policyReportSchema = z.strictObject({
  folder: z.string(),
  files: z.array(z.strictObject({ file: z.string(), problem: z.string().nullable() })),
  refusals: z.array(
    z.strictObject({ domain: z.string(), disk: z.string().nullable(), file: z.string(), why: z.string() }),
  ),
});

export const agentReportSchema = z.strictObject({
  version: z.string(),
  node: z.string(),
  pid: z.int(),
  startedAt: isoTime,
  configPath: z.string(),
  configProblem: z.string().nullable(),
  store: z.string(),
  libvirtConnected: z.boolean(),
});

export const agentVersionSchema = z.strictObject({ version: z.string() });

export const errorAnswerSchema = z.strictObject({
  error: z.strictObject({ code: z.string(), message: z.string(), hint: z.string().nullable() }),
});

const yesOrNo = z.enum(['0', '1']).transform((value) => value === '1');

/** `GET /v1/domains`: `all=1` also lists domains without a declaration. */
export const domainsQuerySchema = z.strictObject({ all: yesOrNo.default(false) });

/**
 * `GET /v1/events`: `since` is a sequence number, past events after it come first (all of them by default), or `now`
 * for later ones alone; `follow=0` ends after the past ones.
 */
export const eventsQuerySchema = z.strictObject({
  since: z
    .union([
      z.literal('now'),
      z
        .string()
        .regex(/^\d{1,15}$/, { error: 'since must be a sequence number, or "now"' })
        .transform(Number),
    ])
    .default(0),
  follow: yesOrNo.default(true),
});

export const noQuerySchema = z.strictObject({});

/** Each fits the other, and neither has an optional key that the other lacks. */
type Same<A, B> = [A, B, keyof A, keyof B] extends [B, A, keyof B, keyof A] ? true : false;
type Assert<T extends true> = T;
type ArgumentsOf<A extends Action> = z.infer<(typeof actionArgumentsSchemas)[A]>;

/** Compiles only while schemas and interfaces are the same. */
export type SchemasMatchInterfaces = [
  Assert<Same<z.infer<typeof copyStatusSchema>, CopyStatus>>,
  Assert<Same<z.infer<typeof jobStatusSchema>, JobStatus>>,
  Assert<Same<z.infer<typeof diskStatusSchema>, DiskStatus>>,
  Assert<Same<z.infer<typeof domainStatusSchema>, DomainStatus>>,
  Assert<Same<z.infer<typeof protectionEventSchema>, ProtectionEvent>>,
  Assert<Same<z.infer<typeof diskVerdictSchema>, DiskVerdict>>,
  Assert<Same<z.infer<typeof actionResultSchema>, ActionResult>>,
  Assert<Same<z.infer<typeof hookBodySchema>, Omit<HookCall, 'operation'>>>,
  Assert<Same<z.infer<typeof hookAnswerSchema>, HookAnswer>>,
  Assert<Same<z.infer<typeof agentVersionSchema>, AgentVersion>>,
  Assert<Same<z.infer<typeof agentReportSchema>, AgentReport>>,
  Assert<Same<z.infer<typeof policyReportSchema>, PolicyReport>>,
  Assert<Same<z.infer<typeof errorAnswerSchema>, ErrorAnswer>>,
  Assert<Same<ArgumentsOf<'protect'>, ActionArguments['protect']>>,
  Assert<Same<ArgumentsOf<'unprotect'>, ActionArguments['unprotect']>>,
  Assert<Same<ArgumentsOf<'failover'>, ActionArguments['failover']>>,
  Assert<Same<ArgumentsOf<'rebuild'>, ActionArguments['rebuild']>>,
  Assert<Same<ArgumentsOf<'resync'>, ActionArguments['resync']>>,
  Assert<Same<ArgumentsOf<'start'>, ActionArguments['start']>>,
  Assert<Same<ArgumentsOf<'migrate'>, ActionArguments['migrate']>>,
  Assert<Same<z.infer<(typeof arrivalSchemas)['expect']>, ArrivalMessages['expect']>>,
  Assert<Same<z.infer<(typeof arrivalSchemas)['handOver']>, ArrivalMessages['handOver']>>,
  Assert<Same<ArgumentsOf<'verify'>, ActionArguments['verify']>>,
  Assert<Same<ArgumentsOf<'hold'>, ActionArguments['hold']>>,
  Assert<Same<ArgumentsOf<'release'>, ActionArguments['release']>>,
];
