import type { IncomingMessage, Server, ServerResponse } from 'node:http';
import { createServer } from 'node:http';
import type { Log } from '../log.ts';
import { RequestError, errorAnswer, readJson, sendJson, sendRawError, statusOf } from './answer.ts';
import type { AgentApi } from './api.ts';
import { sendEvents } from './event-stream.ts';
import { listenOnSocket } from './listen.ts';
import { checkQuery, findRoute } from './routes.ts';
import { eventsQuerySchema } from './schema.ts';

/** How long a client may take to send a whole request. */
const requestMs = 30_000;

export interface ServerOptions {
  socketPath: string;
  /** Whose members may use the socket, besides root; null for nobody. */
  group?: string | null;
  api: AgentApi;
  log: Log;
  version: string;
}

export interface RunningServer {
  /** Stops listening, ends every connection and removes the socket. */
  close(): Promise<void>;
}

/**
 * Serves the agent's API on a unix socket; whoever may open the socket may use all of it.
 * @throws CdpError `agent-already-running`, `socket-in-the-way` or `cannot-listen`.
 */
export async function startServer(options: ServerOptions): Promise<RunningServer> {
  const server = createServer({ requestTimeout: requestMs, headersTimeout: requestMs }, (request, response) => {
    void respond(options, request, response);
  });
  refuseWhatIsNotHttp(server);
  await listenOnSocket(server, options.socketPath, options.group ?? null);
  server.on('error', (error) => options.log.error('socket failed', { error: error.message }));
  return {
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

async function respond(options: ServerOptions, request: IncomingMessage, response: ServerResponse): Promise<void> {
  const { api, log, version } = options;
  const method = request.method ?? '';
  const { path, query } = splitTarget(request.url ?? '');
  try {
    if (path === '/v1/events' && method === 'GET') {
      sendEvents(response, api, checkQuery(eventsQuerySchema, query()));
      return;
    }
    if (path === '/metrics' && method === 'GET') {
      const { contentType, text } = await api.metrics();
      response.writeHead(200, { 'content-type': contentType }).end(text);
      return;
    }
    const { route, name, verb } = findRoute(method, path);
    const body = await readJson(request, route.bodyLimit);
    sendJson(response, 200, await route.answer({ api, version, name, verb, query: query(), body }));
  } catch (error) {
    // The client went away in the middle of its request: there is nobody to answer.
    if (request.errored || response.destroyed) return;
    const status = statusOf(error);
    if (status === 500) log.error('request failed', { method, path, error: traceText(error) });
    else log.debug('request refused', { method, path, status, error: (error as Error).message });
    if (response.headersSent) response.destroy();
    else sendJson(response, status, errorAnswer(error));
    // A body that nobody asked for is read to its end, or the client could not read the answer.
    request.resume();
  }
}

/** Not `new URL()`: that would resolve a domain called `..` away. */
function splitTarget(target: string): { path: string; query: () => Record<string, string> } {
  const mark = target.indexOf('?');
  if (mark < 0) return { path: target, query: () => ({}) };
  return { path: target.slice(0, mark), query: () => parseQuery(target.slice(mark + 1)) };
}

function parseQuery(text: string): Record<string, string> {
  const pairs = [...new URLSearchParams(text)];
  const query = Object.fromEntries(pairs);
  if (Object.keys(query).length === pairs.length) return query;
  throw new RequestError(400, 'bad-request', "the request's query says something twice");
}

function refuseWhatIsNotHttp(server: Server): void {
  server.on('clientError', (error: NodeJS.ErrnoException, socket) => {
    const status = error.code === 'HPE_HEADER_OVERFLOW' ? 431 : error.code === 'ERR_HTTP_REQUEST_TIMEOUT' ? 408 : 400;
    sendRawError(socket, new RequestError(status, 'bad-request', 'this is not an HTTP request that the agent takes'));
  });
  server.on('connect', (_request, socket) => {
    sendRawError(socket, new RequestError(405, 'wrong-method', 'the agent is no proxy'));
  });
  server.on('checkExpectation', (_request, response: ServerResponse) => {
    sendJson(response, 417, errorAnswer(new RequestError(417, 'bad-request', 'no such expectation can be met')));
  });
}

function traceText(error: unknown): string {
  return error instanceof Error ? (error.stack ?? error.message) : String(error);
}
