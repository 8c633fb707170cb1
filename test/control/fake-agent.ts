import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Writable } from 'node:stream';
import winston from 'winston';
import type { Action, ActionResult, AgentApi, AgentReport, HookCall, PolicyReport } from '../../src/control/api.ts';
import type { HookAnswer } from '../../src/protection/starts/hook-answer.ts';
import { AgentClient } from '../../src/control/client.ts';
import { startServer } from '../../src/control/server.ts';
import { CdpError } from '../../src/errors.ts';
import type { DiskStatus, DomainStatus, ProtectionEvent } from '../../src/protection/model.ts';

/** An agent in memory, behind the real server on a socket of its own. */
export class FakeAgent implements AgentApi {
  readonly statuses = new Map<string, DomainStatus>();
  /** How often a domain's status was asked for. */
  looks = 0;
  readonly undeclared: DomainStatus[] = [];
  readonly past: ProtectionEvent[] = [];
  readonly acts: { domain: string; action: Action; args: unknown }[] = [];
  readonly hookCalls: HookCall[] = [];
  /** The errors that the server has logged, one JSON object a line. */
  readonly logged: string[] = [];
  onAct: (domain: string, action: Action) => ActionResult | Promise<ActionResult> = (domain, action) => ({
    message: `${action} of ${domain} accepted`,
    warnings: [],
    status: this.statuses.get(domain) ?? null,
  });
  report: PolicyReport = { folder: '/etc/virt-cdp/policy.d', files: [], refusals: [] };
  self: AgentReport = {
    version: '1.2.3',
    node: '20.19.0',
    pid: 42,
    startedAt: noon,
    configPath: '/etc/virt-cdp/virt-cdp.toml',
    configProblem: null,
    store: '/var/lib/virt-cdp',
    libvirtConnected: true,
  };
  onHook: () => HookAnswer = () => ({ refuse: null, xml: null });
  socketPath = '';
  private readonly listeners = new Set<(event: ProtectionEvent) => void>();
  private close = (): Promise<void> => Promise.resolve();

  async start(): Promise<this> {
    const folder = await mkdtemp(join(tmpdir(), 'virt-cdp-control-'));
    this.socketPath = join(folder, 'agent.sock');
    const log = quietLog((line) => this.logged.push(line));
    const server = await startServer({ socketPath: this.socketPath, api: this, log, version: '1.2.3' });
    this.close = async () => {
      await server.close();
      await rm(folder, { recursive: true });
    };
    return this;
  }

  stop(): Promise<void> {
    return this.close();
  }

  get client(): AgentClient {
    return new AgentClient({ socketPath: this.socketPath });
  }

  get followers(): number {
    return this.listeners.size;
  }

  emit(event: Partial<ProtectionEvent>): void {
    const full = eventWith({ seq: this.past.length + 1, ...event });
    this.past.push(full);
    this.listeners.forEach((listener) => listener(full));
  }

  domains(all: boolean): Promise<DomainStatus[]> {
    return Promise.resolve([...this.statuses.values(), ...(all ? this.undeclared : [])]);
  }

  domain(name: string): Promise<DomainStatus> {
    this.looks += 1;
    const found = this.statuses.get(name);
    if (found) return Promise.resolve(found);
    const hint = 'virsh list --all';
    return Promise.reject(new CdpError({ code: 'no-such-domain', message: `there is no domain ${name}`, hint }));
  }

  async act(domain: string, action: Action, args: unknown): Promise<ActionResult> {
    this.acts.push({ domain, action, args });
    return this.onAct(domain, action);
  }

  agent(): AgentReport {
    return this.self;
  }

  metrics(): Promise<{ contentType: string; text: string }> {
    return Promise.resolve({ contentType: 'text/plain; version=0.0.4', text: 'virt_cdp_up 1\n' });
  }

  policies(): PolicyReport {
    return this.report;
  }

  hook(call: HookCall): HookAnswer {
    this.hookCalls.push(call);
    return this.onHook();
  }

  arrival(): Promise<null> {
    return Promise.resolve(null);
  }

  eventsSince(since: number): ProtectionEvent[] {
    return this.past.filter(({ seq }) => seq > since);
  }

  followEvents(listener: (event: ProtectionEvent) => void): () => void {
    this.listeners.add(listener);
    return () => void this.listeners.delete(listener);
  }
}

export function quietLog(take: (line: string) => void): winston.Logger {
  const log = winston.createLogger({ level: 'info' });
  log.pipe(
    new Writable({
      objectMode: true,
      write: (info: winston.LogEntry, _encoding, next) => {
        if (info.level === 'error') take(JSON.stringify(info));
        next();
      },
    }),
  );
  return log;
}

export const noon = '2026-01-31T12:00:00.000Z';

export function diskWith(changes: Partial<DiskStatus> = {}): DiskStatus {
  const copy = { current: true, reachable: true, consistentAsOf: null };
  return {
    dev: 'vda',
    state: 'protected',
    since: noon,
    reason: null,
    primary: { source: '/images/web1.qcow2', ...copy },
    mirror: { source: 'nbd://storage/web1', ...copy },
    runningOn: 'both',
    exposedSince: null,
    exposedBytes: null,
    job: null,
    ...changes,
  };
}

export function domainWith(changes: Partial<DomainStatus> = {}): DomainStatus {
  const disks = changes.disks ?? [diskWith()];
  return {
    domain: 'web1',
    uuid: '11111111-2222-3333-4444-555555555555',
    running: true,
    state: disks[0]?.state ?? 'stopped',
    policy: 'available',
    engine: 'quorum',
    guarantee: 'strict-ack',
    disks,
    ...changes,
  };
}

export function eventWith(changes: Partial<ProtectionEvent> = {}): ProtectionEvent {
  return {
    seq: 1,
    time: noon,
    domain: 'web1',
    disk: 'vda',
    event: 'primary-lost',
    from: 'protected',
    to: 'failed-over',
    detail: {},
    ...changes,
  };
}
