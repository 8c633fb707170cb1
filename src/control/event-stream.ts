import type { ServerResponse } from 'node:http';
import type { ProtectionEvent } from '../protection/model.ts';
import type { AgentApi } from './api.ts';
import { protectionEventSchema } from './schema.ts';

/** How often a silent stream shows that it is alive; the client gives up after some of these. */
export const heartbeatMs = 15_000;

/** A follower that has not taken this much is cut off: it must not fill the agent's memory. */
const backlogBytes = 4 * 1024 * 1024;

export interface EventQuery {
  /** Past events after this sequence number come first; `now` for none of them. */
  since: number | 'now';
  /** Go on with later events until the client closes. */
  follow: boolean;
}

/** Answers with server-sent events: `id` is the sequence number, `data` one ProtectionEvent. */
export function sendEvents(response: ServerResponse, api: AgentApi, query: EventQuery): void {
  response.writeHead(200, { 'content-type': 'text/event-stream', 'cache-control': 'no-store' });
  response.flushHeaders();
  const write = (event: ProtectionEvent): void => {
    response.write(eventText(event));
    if (query.follow && response.writableLength > backlogBytes) response.destroy();
  };
  // Reading the past and subscribing happen in one turn of the event loop, so that no event falls between them.
  const past = query.since === 'now' ? [] : api.eventsSince(query.since);
  if (query.follow) {
    const heartbeat = setInterval(() => response.write(': alive\n\n'), heartbeatMs);
    const unfollow = api.followEvents(write);
    response.once('close', () => {
      clearInterval(heartbeat);
      unfollow();
    });
  }
  past.forEach((event) => response.write(eventText(event)));
  if (!query.follow) response.end();
}

function eventText(event: ProtectionEvent): string {
  return `id: ${event.seq}\nevent: ${event.event}\ndata: ${JSON.stringify(protectionEventSchema.parse(event))}\n\n`;
}

/** The events of a stream as sendEvents() writes it; comments and fields other than `data` are passed over. */
export async function* readEvents(chunks: AsyncIterable<string>): AsyncGenerator<ProtectionEvent> {
  let rest = '';
  for await (const chunk of chunks) {
    const blocks = (rest + chunk).split('\n\n');
    rest = blocks.pop() ?? '';
    for (const block of blocks) {
      const data = block
        .split('\n')
        .filter((line) => line.startsWith('data: '))
        .map((line) => line.slice('data: '.length));
      if (data.length > 0) yield protectionEventSchema.parse(JSON.parse(data.join('\n')));
    }
  }
}
