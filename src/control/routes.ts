import type { z } from 'zod';
import { RequestError, checkRequest } from './answer.ts';
import type { Action, AgentApi, ArrivalMessages } from './api.ts';
import {
  actionArgumentsSchemas,
  actionResultSchema,
  agentReportSchema,
  agentVersionSchema,
  arrivalResultSchema,
  arrivalSchemas,
  domainStatusSchema,
  domainStatusesSchema,
  domainsQuerySchema,
  hookAnswerSchema,
  hookBodySchema,
  noQuerySchema,
  policyReportSchema,
} from './schema.ts';

const bodyBytes = 1024 * 1024;
/** libvirt's XML of a domain with many devices is larger than anything else that is sent. */
const hookBodyBytes = 8 * 1024 * 1024;

/** What a route works on, before any of it has been checked. */
export interface RouteCall {
  api: AgentApi;
  version: string;
  /** The part of the path that stands at `:domain`, and the one after it. */
  name: string;
  verb: string;
  query: Record<string, string>;
  body: unknown;
}

export interface Route {
  method: 'GET' | 'POST';
  /** A path whose segments with a colon stand for anything. */
  path: string;
  /** Largest body; bytes. */
  bodyLimit: number;
  /** Checks the call, asks the agent and checks its answer. */
  answer(call: RouteCall): Promise<unknown>;
}

/** Everything but the event stream, which does not end with an answer. */
const routes: readonly Route[] = [
  {
    method: 'GET',
    path: '/v1/version',
    bodyLimit: 0,
    answer: ({ query, version }) => {
      checkQuery(noQuerySchema, query);
      return Promise.resolve(agentVersionSchema.parse({ version }));
    },
  },
  {
    method: 'GET',
    path: '/v1/agent',
    bodyLimit: 0,
    answer: ({ api, query }) => {
      checkQuery(noQuerySchema, query);
      return Promise.resolve(agentReportSchema.parse(api.agent()));
    },
  },
  {
    method: 'GET',
    path: '/v1/policies',
    bodyLimit: 0,
    answer: ({ api, query }) => {
      checkQuery(noQuerySchema, query);
      return Promise.resolve(policyReportSchema.parse(api.policies()));
    },
  },
  {
    method: 'GET',
    path: '/v1/domains',
    bodyLimit: 0,
    answer: async ({ api, query }) =>
      domainStatusesSchema.parse(await api.domains(checkQuery(domainsQuerySchema, query).all)),
  },
  {
    method: 'GET',
    path: '/v1/domains/:name',
    bodyLimit: 0,
    answer: async ({ api, name, query }) => {
      checkQuery(noQuerySchema, query);
      return domainStatusSchema.parse(await api.domain(name));
    },
  },
  {
    method: 'POST',
    path: '/v1/domains/:name/:verb',
    bodyLimit: bodyBytes,
    answer: ({ api, name, verb, query, body }) => {
      checkQuery(noQuerySchema, query);
      return act(api, name, verb, body);
    },
  },
  {
    method: 'POST',
    path: '/v1/arrivals/:verb',
    bodyLimit: bodyBytes,
    answer: async ({ api, verb, query, body }) => {
      checkQuery(noQuerySchema, query);
      if (!isArrivalMessage(verb)) throw new RequestError(404, 'no-such-message', 'there is no such message');
      const args = checkRequest(arrivalSchemas[verb], body, 'the message');
      return arrivalResultSchema.parse(await api.arrival(verb, args));
    },
  },
  {
    method: 'POST',
    path: '/v1/hook/:verb',
    bodyLimit: hookBodyBytes,
    answer: ({ api, verb, query, body }) => {
      checkQuery(noQuerySchema, query);
      const call = checkRequest(hookBodySchema, body, "the hook's call");
      return Promise.resolve(hookAnswerSchema.parse(api.hook({ operation: verb, ...call })));
    },
  },
];

/**
 * The route for a request, and the variable parts of its path, decoded.
 * @throws RequestError 404 if there is nothing at this path, 405 if there is, but not for this method.
 */
export function findRoute(method: string, path: string): { route: Route; name: string; verb: string } {
  const matches = routes.flatMap((route) => {
    const parts = matchPath(route.path, path);
    return parts ? [{ route, ...parts }] : [];
  });
  const match = matches.find(({ route }) => route.method === method);
  if (match) return match;
  if (matches.length > 0) {
    const allowed = matches.map(({ route }) => route.method).join(', ');
    throw new RequestError(405, 'wrong-method', `this path takes ${allowed}, not ${method}`);
  }
  throw new RequestError(404, 'no-such-path', 'there is nothing at this path of the API', 'the API is under /v1/');
}

export function checkQuery<S extends z.ZodType>(schema: S, query: Record<string, string>): z.infer<S> {
  return checkRequest(schema, query, "the request's query");
}

function matchPath(pattern: string, path: string): { name: string; verb: string } | null {
  const wanted = pattern.split('/');
  const given = path.split('/');
  if (wanted.length !== given.length) return null;
  const parts = { name: '', verb: '' };
  for (const [index, segment] of wanted.entries()) {
    const value = given[index] ?? '';
    if (segment === ':name') parts.name = decode(value);
    else if (segment === ':verb') parts.verb = decode(value);
    else if (segment !== value) return null;
  }
  return parts;
}

function decode(segment: string): string {
  try {
    const text = decodeURIComponent(segment);
    if (text !== '') return text;
  } catch {
    // Falls through to the same answer as an empty name.
  }
  throw new RequestError(400, 'bad-request', 'a name in the path is empty or not percent-encoded UTF-8');
}

async function act(api: AgentApi, domain: string, action: string, body: unknown): Promise<unknown> {
  if (!isAction(action)) {
    const hint = `the actions are: ${Object.keys(actionArgumentsSchemas).join(', ')}`;
    throw new RequestError(404, 'no-such-action', 'there is no such action', hint);
  }
  const args = checkRequest(actionArgumentsSchemas[action], body, `the arguments of ${action}`);
  return actionResultSchema.parse(await api.act(domain, action, args));
}

function isArrivalMessage(text: string): text is keyof ArrivalMessages {
  return Object.hasOwn(arrivalSchemas, text);
}

function isAction(text: string): text is Action {
  return Object.hasOwn(actionArgumentsSchemas, text);
}
