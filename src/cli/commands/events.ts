import type { AgentClient } from '../../control/client.ts';
import { CdpError, UsageError } from '../../errors.ts';
import type { ProtectionEvent } from '../../protection/model.ts';
import { defineCommand } from '../command.ts';
import { exitCodes } from '../exit.ts';
import { formatTime } from '../format.ts';

export const events = defineCommand({
  name: 'events',
  summary: 'what happened, newest last',
  domain: 'none',
  options: {
    follow: { summary: 'go on with what happens from now on' },
    domain: { value: 'DOMAIN', summary: 'of this domain only' },
    since: { value: 'N', summary: 'only after the event with this sequence number' },
  },
  async run({ client, out, interrupt }, _domain, { follow, domain, since }) {
    const name = domain === undefined ? undefined : await nameOf(client, domain);
    for await (const event of client.events(sequenceNumber(since), { follow, signal: interrupt })) {
      if (name !== undefined && event.domain !== name) continue;
      if (out.json) out.value(event);
      else out.line(eventText(event));
    }
    return exitCodes.done;
  },
});

function sequenceNumber(text = '0'): number {
  if (/^\d{1,15}$/.test(text)) return Number(text);
  throw new UsageError({ code: 'usage', message: `--since takes the number of an event, not ${text}` });
}

/** Events carry names; a name is taken as it is, for the domain of an old event may be gone. */
async function nameOf(client: AgentClient, domain: string): Promise<string> {
  if (!/^(\d+|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})$/i.test(domain)) return domain;
  try {
    return (await client.domain(domain)).domain;
  } catch (error) {
    if (error instanceof CdpError && error.code.startsWith('no-such-')) return domain;
    throw error;
  }
}

/** `  42  2026-01-31 12:00:00  web1 vda  primary-lost  protected -> failed-over  key=value` */
export function eventText(event: ProtectionEvent): string {
  const subject = [event.domain, event.disk].filter(Boolean).join(' ');
  const parts = [String(event.seq).padStart(4), formatTime(event.time), subject, event.event];
  if (event.to !== null) parts.push(event.from === null ? `-> ${event.to}` : `${event.from} -> ${event.to}`);
  const detail = Object.entries(event.detail).map(([key, value]) => `${key}=${valueText(value)}`);
  if (detail.length > 0) parts.push(detail.join(' '));
  return parts.join('  ');
}

function valueText(value: unknown): string {
  if (typeof value === 'string' && /^[^\s"=]+$/.test(value)) return value;
  return JSON.stringify(value);
}
