import { request as httpRequest } from 'node:http';
import type { IncomingMessage } from 'node:http';
import { CdpError, errorText } from '../errors.ts';

/** The agent's socket unless --socket, VIRT_CDP_SOCKET or the configuration says otherwise. */
export const defaultSocketPath = '/run/virt-cdp/virt-cdp.sock';

/** No agent behind the socket, or none that answers in time (exit 3). */
export class AgentUnreachableError extends CdpError {}

export interface Call {
  socketPath: string;
  method: 'GET' | 'POST';
  path: string;
  body?: unknown;
  /** From connecting to the last byte of the answer; for a stream, to the first. */
  deadlineMs: number;
  /** Breaks the call off. */
  signal?: AbortSignal;
}

export interface Answer {
  status: number;
  text: string;
}

/**
 * Sends one request on a connection of its own and returns the whole answer, whatever its status.
 * @throws AgentUnreachableError if nobody listens, or the deadline passes.
 */
export async function send(call: Call): Promise<Answer> {
  const deadline = AbortSignal.timeout(call.deadlineMs);
  try {
    const response = await open(call, deadline);
    return { status: response.statusCode ?? 0, text: await readText(response) };
  } catch (error) {
    throw unreachable(call, deadline, error);
  }
}

/**
 * Sends one request and returns once the answer's head is here; its body may go on for ever.
 * @throws AgentUnreachableError if nobody listens, or the deadline passes.
 */
export async function openStream(call: Call): Promise<IncomingMessage> {
  const deadline = new AbortController();
  const timer = setTimeout(() => deadline.abort(), call.deadlineMs);
  try {
    return await open(call, deadline.signal);
  } catch (error) {
    throw unreachable(call, deadline.signal, error);
  } finally {
    clearTimeout(timer);
  }
}

export async function readText(response: IncomingMessage): Promise<string> {
  response.setEncoding('utf8');
  let text = '';
  for await (const chunk of response) text += chunk as string;
  return text;
}

function open(call: Call, deadline: AbortSignal): Promise<IncomingMessage> {
  return new Promise((resolve, reject) => {
    const body = call.body === undefined ? undefined : Buffer.from(JSON.stringify(call.body));
    const request = httpRequest(
      {
        socketPath: call.socketPath,
        method: call.method,
        path: call.path,
        agent: false,
        signal: call.signal ? AbortSignal.any([call.signal, deadline]) : deadline,
        headers: body ? { 'content-type': 'application/json', 'content-length': body.length } : {},
      },
      resolve,
    );
    request.on('error', reject);
    request.end(body);
  });
}

function unreachable(call: Call, deadline: AbortSignal, cause: unknown): AgentUnreachableError {
  const code = 'agent-unreachable';
  const { socketPath } = call;
  if (deadline.aborted) {
    const message = `the agent behind ${socketPath} has not answered within ${call.deadlineMs / 1000} s`;
    const hint = 'see what it is doing: journalctl -u virt-cdpd; what was asked for may still happen';
    return new AgentUnreachableError({ code, message, hint, cause });
  }
  const reason = (cause as NodeJS.ErrnoException).code;
  if (reason === 'EACCES' || reason === 'EPERM') {
    const message = `no permission to open the agent's socket ${socketPath}`;
    return new AgentUnreachableError({
      code,
      message,
      hint: 'run this as root, or join the group that owns it',
      cause,
    });
  }
  const message = `cannot reach the agent at ${socketPath}: ${reasonText(reason, cause)}`;
  const hint = 'start it: systemctl start virt-cdpd, or virt-cdpd --config FILE';
  return new AgentUnreachableError({ code, message, hint, cause });
}

const reasonTexts: Record<string, string> = {
  ENOENT: 'there is no such socket',
  ECONNREFUSED: 'nobody listens on it',
  ECONNRESET: 'it closed the connection',
};

function reasonText(reason: string | undefined, cause: unknown): string {
  return reasonTexts[reason ?? ''] ?? errorText(cause);
}
