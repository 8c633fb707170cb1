import type { IncomingMessage } from 'node:http';
import { z } from 'zod';
import { CdpError, RefusedError, UsageError } from '../errors.ts';
import type { DomainStatus, ProtectionEvent } from '../protection/model.ts';
import { problems } from './answer.ts';
import type {
  Action,
  ActionArguments,
  ActionResult,
  AgentReport,
  ArrivalMessages,
  DomainName,
  HookCall,
  PolicyReport,
} from './api.ts';
import type { HookAnswer } from '../protection/starts/hook-answer.ts';
import { heartbeatMs, readEvents } from './event-stream.ts';
import {
  actionArgumentsSchemas,
  actionResultSchema,
  agentReportSchema,
  agentVersionSchema,
  arrivalResultSchema,
  domainStatusSchema,
  domainStatusesSchema,
  errorAnswerSchema,
  hookAnswerSchema,
  policyReportSchema,
} from './schema.ts';
import type { Answer, Call } from './transport.ts';
import { AgentUnreachableError, openStream, readText, send } from './transport.ts';

/** Looking something up. */
const lookUpMs = 30_000;
/** An action is answered as soon as it is accepted; what takes long goes on in the agent. */
const actionMs = 60_000;
/** But a guest's pause is answered when it is over. */
const pauseMs = 2 * 3_600_000;
/** And a migration. */
export const migrationMs = 24 * 3_600_000;
/** A verify is answered with what it found: large disks take days at a low speed. */
const verifyMs = 14 * 24 * 3_600_000;

export interface ClientOptions {
  socketPath: string;
  /** For tests: replaces every deadline. */
  deadlineMs?: number;
}

export interface FollowOptions {
  /** Go on with later events until `signal` is aborted or the agent goes. Default false. */
  follow?: boolean;
  signal?: AbortSignal;
}

/** The stream of events has ended after it began: the agent is gone, or fell silent. */
export class StreamBrokenError extends AgentUnreachableError {}

/**
 * The agent as seen from outside. Every method throws AgentUnreachableError if there is no answer, and otherwise what
 * the agent threw: RefusedError, UsageError or CdpError with its code, message and hint.
 */
export class AgentClient {
  private readonly options: ClientOptions;

  constructor(options: ClientOptions) {
    this.options = options;
  }

  /** Protected domains; with `all` also undeclared ones, with no disks. */
  domains(all: boolean): Promise<DomainStatus[]> {
    return this.call(domainStatusesSchema, 'GET', `/v1/domains${all ? '?all=1' : ''}`, lookUpMs);
  }

  async domain(name: DomainName): Promise<DomainStatus> {
    return this.call(domainStatusSchema, 'GET', `/v1/domains/${segment(name)}`, lookUpMs);
  }

  async act<A extends Action>(name: DomainName, action: A, args: ActionArguments[A]): Promise<ActionResult> {
    const checked = actionArgumentsSchemas[action].safeParse(args);
    if (!checked.success) {
      const message = `cannot ${action} ${name}: ${problems(checked.error)}`;
      throw new UsageError({ code: 'bad-request', message });
    }
    const deadlineMs =
      action === 'migrate' ? migrationMs : action === 'verify' ? verifyMs : 'stopPolicyBy' in args ? pauseMs : actionMs;
    return this.call(actionResultSchema, 'POST', `/v1/domains/${segment(name)}/${action}`, deadlineMs, args);
  }

  /** `deadlineMs` is the whole time that libvirt may be kept waiting. */
  async hook(call: HookCall, deadlineMs: number): Promise<HookAnswer> {
    const { operation, ...body } = call;
    return this.call(hookAnswerSchema, 'POST', `/v1/hook/${segment(operation)}`, deadlineMs, body);
  }

  async arrival<M extends keyof ArrivalMessages>(message: M, args: ArrivalMessages[M]): Promise<DomainStatus | null> {
    return this.call(arrivalResultSchema, 'POST', `/v1/arrivals/${message}`, actionMs, args);
  }

  async policies(): Promise<PolicyReport> {
    return this.call(policyReportSchema, 'GET', '/v1/policies', lookUpMs);
  }

  async report(): Promise<AgentReport> {
    return this.call(agentReportSchema, 'GET', '/v1/agent', lookUpMs);
  }

  async version(): Promise<string> {
    return (await this.call(agentVersionSchema, 'GET', '/v1/version', lookUpMs)).version;
  }

  /** Past events with seq > since, oldest first (`now`: none of them), and with `follow` those that come later. */
  async *events(since: number | 'now', options: FollowOptions = {}): AsyncGenerator<ProtectionEvent, void> {
    const { follow = false, signal } = options;
    const path = `/v1/events?since=${since}&follow=${follow ? 1 : 0}`;
    const call = this.request('GET', path, lookUpMs);
    const response = await openStream(signal ? { ...call, signal } : call).catch((error: unknown) => {
      if (signal?.aborted) return null;
      throw error;
    });
    if (response === null) return;
    if (response.statusCode !== 200) {
      throw errorOf({ status: response.statusCode ?? 0, text: await readText(response) });
    }
    try {
      yield* readEvents(untilSilent(response));
    } catch (cause) {
      if (signal?.aborted) return;
      throw cause instanceof CdpError ? cause : streamBroken(this.options.socketPath, cause);
    } finally {
      response.destroy();
    }
    if (follow) throw streamBroken(this.options.socketPath, undefined);
  }

  private async call<S extends z.ZodType>(
    schema: S,
    method: Call['method'],
    path: string,
    deadlineMs: number,
    body?: unknown,
  ): Promise<z.infer<S>> {
    const answer = await send(this.request(method, path, deadlineMs, body));
    if (answer.status !== 200) throw errorOf(answer);
    return read(schema, answer.text);
  }

  private request(method: Call['method'], path: string, deadlineMs: number, body?: unknown): Call {
    const { socketPath } = this.options;
    return { socketPath, method, path, body, deadlineMs: this.options.deadlineMs ?? deadlineMs };
  }
}

function segment(text: string): string {
  if (text === '') throw new UsageError({ code: 'bad-request', message: 'the name of a domain must not be empty' });
  return encodeURIComponent(text);
}

function read<S extends z.ZodType>(schema: S, text: string): z.infer<S> {
  try {
    return schema.parse(JSON.parse(text));
  } catch (cause) {
    const reason = cause instanceof z.ZodError ? problems(cause) : 'it is not JSON';
    throw new CdpError({
      code: 'bad-answer',
      message: `the agent's answer can't be understood: ${reason}`,
      hint: 'the agent may be of another version: systemctl restart virt-cdpd',
      cause,
    });
  }
}

/** The error that the agent threw, as far as its answer tells. */
function errorOf(answer: Answer): CdpError {
  const { code, message, hint } = read(errorAnswerSchema, answer.text).error;
  const parts = { code, message, ...(hint === null ? {} : { hint }) };
  if (answer.status === 409) return new RefusedError(parts);
  if (answer.status === 400) return new UsageError(parts);
  return new CdpError(parts);
}

/** The stream's text; one that shows no sign of life any more is broken off. */
async function* untilSilent(response: IncomingMessage): AsyncGenerator<string> {
  response.setEncoding('utf8');
  response.setTimeout(4 * heartbeatMs, () => response.destroy(new Error('it has fallen silent')));
  for await (const chunk of response) yield chunk as string;
}

function streamBroken(socketPath: string, cause: unknown): StreamBrokenError {
  return new StreamBrokenError({
    code: 'agent-unreachable',
    message: `the agent at ${socketPath} has ended the stream of events`,
    hint: 'see whether it runs: systemctl status virt-cdpd',
    cause,
  });
}
