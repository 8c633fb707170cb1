import type { HookAnswer } from '../protection/starts/hook-answer.ts';
import type { Policy } from '../domain/declaration.ts';
import type { DiskVerdict, DomainStatus, ProtectionEvent } from '../protection/model.ts';
import type { DomainRecord } from '../protection/record.ts';

/** A domain by name, UUID or id, as in virsh. */
export type DomainName = string;

/** What an action of the API takes, in the words of the commands (`virt-cdp ACTION DOMAIN ...`). */
export interface ActionArguments {
  protect: {
    disk: string;
    /** A URI or path; exactly one of `mirror` and `mirrorXml`, or none for a declared disk's `stopPolicyBy`. */
    mirror?: string;
    /** A libvirt `<disk>` element. */
    mirrorXml?: string;
    policy?: Policy;
    /** Create the mirror with the disk's size. */
    create?: boolean;
    /** The mirror holds data that may be overwritten. */
    overwriteMirror?: boolean;
    unencryptedMirror?: boolean;
    /** Where later rebuilds put the new primary: a path with {domain}, {dev} and {n}. */
    rebuildTo?: string;
    /** Give a running domain the stop policy by saving and restoring it; refused until the pause is agreed to. */
    stopPolicyBy?: 'save-restore';
    pauseAgreed?: boolean;
  };
  unprotect: { disk?: string; keep?: 'mirror' };
  hold: Record<string, never>;
  release: Record<string, never>;
  failover: { disk?: string; acceptDataLoss?: boolean };
  rebuild: { disk?: string; to?: string; toXml?: string; format?: 'raw' | 'qcow2' };
  resync: { disk?: string; full?: boolean };
  start: { acceptDataLoss?: boolean };
  migrate: {
    /** libvirt's URI of the destination. */
    to: string;
    /** The socket of the destination's agent, as this host reaches it; without it the domain goes `unprotected`. */
    destSocket?: string;
    unprotected?: boolean;
    /** More options of `virsh migrate`. */
    options?: string[];
  };
  /** Bytes per second of each copy; 0 is unlimited. `repair`: copy what differs from the primary onto the mirror. */
  verify: { disk?: string; maxBytesPerS?: number; repair?: boolean };
}

export type Action = keyof ActionArguments;

/** What an action answers once it is accepted: what it did at once, and what still goes on by itself. */
export interface ActionResult {
  message: string;
  /** Things the user should know though the action was taken, e.g. that protection begins at the next start. */
  warnings: string[];
  status: DomainStatus | null;
  /** What a verify found, a disk each; of no other action. */
  verdicts?: DiskVerdict[];
}

/** What libvirt's hook tells the agent, which answers from memory. */
export interface HookCall {
  operation: string;
  subOperation: string;
  extra: string;
  /** The XML that libvirt gave the hook on stdin. */
  domainXml: string;
}

/** What the agent of a domain's host says to that of the host which the domain migrates to. */
export interface ArrivalMessages {
  /** It is about to come. */
  expect: { ticket: string; record: DomainRecord };
  /** It has come, and its source has let go of it: the copies of these disks were identical then. */
  handOver: { ticket: string; identical: string[] };
  /** It does not come. */
  cancel: { ticket: string };
}

/** What `GET /v1/policies` answers. */
export interface PolicyReport {
  folder: string;
  /** In the order in which they are asked. `problem`: why a file can't be used; what it said before holds. */
  files: { file: string; problem: string | null }[];
  /** Disks, or whole domains, that a file wants protected, and why they are not. */
  refusals: { domain: string; disk: string | null; file: string; why: string }[];
}

/** What `GET /v1/agent` answers: the agent about itself. */
export interface AgentReport {
  version: string;
  /** Node's version, e.g. `20.19.0`. */
  node: string;
  pid: number;
  /** ISO time. */
  startedAt: string;
  configPath: string;
  /** Why the configuration file, as it is now, is not in force; null if it is. */
  configProblem: string | null;
  /** Where the agent's records are. */
  store: string;
  /** Whether libvirt answers it. */
  libvirtConnected: boolean;
}

/** What the server offers; the agent implements it. Errors are CdpErrors. */
export interface AgentApi {
  agent(): AgentReport;
  /** For Prometheus. */
  metrics(): Promise<{ contentType: string; text: string }>;
  policies(): PolicyReport;
  /** Protected domains; with `all` also undeclared ones, with no disks. */
  domains(all: boolean): Promise<DomainStatus[]>;
  domain(name: DomainName): Promise<DomainStatus>;
  act<A extends Action>(domain: DomainName, action: A, args: ActionArguments[A]): Promise<ActionResult>;
  hook(call: HookCall): HookAnswer;
  /** Answers with the domain's status when what was said has been done; null if the domain is not known then. */
  arrival<M extends keyof ArrivalMessages>(message: M, args: ArrivalMessages[M]): Promise<DomainStatus | null>;
  /** Past events with seq > since, oldest first. */
  eventsSince(since: number): ProtectionEvent[];
  /** Calls back for each later event until the returned function is called. */
  followEvents(listener: (event: ProtectionEvent) => void): () => void;
}

/** What `GET /v1/version` answers. */
export interface AgentVersion {
  version: string;
}

/** The body of every answer that is not a success. */
export interface ErrorAnswer {
  error: { code: string; message: string; hint: string | null };
}
