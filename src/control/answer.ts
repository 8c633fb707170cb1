import type { IncomingMessage, ServerResponse } from 'node:http';
import { STATUS_CODES } from 'node:http';
import type { Duplex } from 'node:stream';
import type { z } from 'zod';
import { prettifyError } from 'zod';
import { CdpError, RefusedError, UsageError } from '../errors.ts';
import type { ErrorAnswer } from './api.ts';

/** A request that never gets as far as the agent: it is malformed, or there is nothing at its path. */
export class RequestError extends CdpError {
  readonly status: number;

  constructor(status: number, code: string, message: string, hint?: string) {
    super(hint === undefined ? { code, message } : { code, message, hint });
    this.status = status;
  }
}

/** Codes of this form say that what the request names does not exist. */
const notFound = /^no-such-/;

export function statusOf(error: unknown): number {
  if (error instanceof RequestError) return error.status;
  if (error instanceof RefusedError) return 409;
  if (error instanceof UsageError) return 400;
  if (error instanceof CdpError && notFound.test(error.code)) return 404;
  return 500;
}

/** What the client is told of an error; of an unexpected one only that there was one, for the log has the rest. */
export function errorAnswer(error: unknown): ErrorAnswer {
  if (error instanceof CdpError) {
    return { error: { code: error.code, message: error.message, hint: error.hint ?? null } };
  }
  const message = 'the agent failed in a way it did not expect';
  return { error: { code: 'internal', message, hint: 'its log says more: journalctl -u virt-cdpd' } };
}

export function sendJson(response: ServerResponse, status: number, body: unknown): void {
  const text = Buffer.from(`${JSON.stringify(body)}\n`);
  response.writeHead(status, { 'content-type': 'application/json', 'content-length': text.length });
  response.end(text);
}

/** Answers on a connection whose request could not even be parsed as HTTP. */
export function sendRawError(socket: Duplex, error: RequestError): void {
  if (!socket.writable) {
    socket.destroy();
    return;
  }
  const body = `${JSON.stringify(errorAnswer(error))}\n`;
  const head = [
    `HTTP/1.1 ${error.status} ${STATUS_CODES[error.status] ?? 'Error'}`,
    'content-type: application/json',
    `content-length: ${Buffer.byteLength(body)}`,
    'connection: close',
  ];
  socket.end(`${head.join('\r\n')}\r\n\r\n${body}`);
}

/** The request's body as JSON; no body at all counts as `{}`. */
export async function readJson(request: IncomingMessage, limitBytes: number): Promise<unknown> {
  const chunks: Buffer[] = [];
  let sizeBytes = 0;
  for await (const chunk of request as AsyncIterable<Buffer>) {
    sizeBytes += chunk.length;
    // The rest is read and dropped: to close at once would cut off the answer before the client sees it.
    if (sizeBytes <= limitBytes) chunks.push(chunk);
  }
  if (sizeBytes > limitBytes) {
    throw new RequestError(413, 'too-large', `the request's body is larger than ${limitBytes} bytes`);
  }
  if (sizeBytes === 0) return {};
  try {
    return JSON.parse(Buffer.concat(chunks).toString('utf8')) as unknown;
  } catch {
    throw new RequestError(400, 'bad-json', "the request's body is not JSON");
  }
}

/** @throws RequestError 400 that names what is wrong with `value`. */
export function checkRequest<S extends z.ZodType>(schema: S, value: unknown, what: string): z.infer<S> {
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  throw new RequestError(400, 'bad-request', `there is something wrong in ${what}: ${problems(result.error)}`);
}

/** zod's findings as one sentence. */
export function problems(error: z.ZodError): string {
  return prettifyError(error)
    .split('\n')
    .map((line) => line.replace(/^✖ /, '').replace(/^ *→ /, ''))
    .join('; ')
    .slice(0, 1000);
}
