/**
 * virt-cdp-hook: what hooks/qemu runs for a protected domain, with the hook's own arguments and stdin. It asks the
 * agent, whose answer comes from memory, and never libvirt, which would deadlock. libvirt waits for it with the domain
 * locked: whatever happens, it ends by the deadline in VIRT_CDP_HOOK_DEADLINE_MS. stdout stays empty, by which restore
 * and migrate leave the XML as it is. Exit 1 is a refusal; an agent that is down or silent refuses nothing.
 */
import { writeSync } from 'node:fs';
import { CdpError, errorText } from '../errors.ts';
import { defaultSocketPath, send } from '../control/transport.ts';

const usualDeadlineMs = 1000;

/** Reading stdin counts too: the timer runs from here. */
const deadlineMs = Number(process.env['VIRT_CDP_HOOK_DEADLINE_MS']) || usualDeadlineMs;
const startedAt = performance.now();
const [domain = '', operation = '', subOperation = '', extra = ''] = process.argv.slice(2);

setTimeout(() => goOn(`no answer within ${deadlineMs} ms`), deadlineMs);
process.on('uncaughtException', (error) => goOn(errorText(error)));
process.on('unhandledRejection', (error) => goOn(errorText(error)));
void decide();

async function decide(): Promise<void> {
  const domainXml = await readStdin();
  const answer = await send({
    socketPath: process.env['VIRT_CDP_SOCKET'] ?? defaultSocketPath,
    method: 'POST',
    path: `/v1/hook/${encodeURIComponent(operation)}`,
    body: { subOperation, extra, domainXml },
    deadlineMs: Math.max(1, Math.ceil(deadlineMs - (performance.now() - startedAt))),
  });
  if (answer.status !== 200) throw new CdpError({ code: 'bad-answer', message: answer.text.trim() });
  const refusal = refusalOf(answer.text);
  if (refusal === null) process.exit(0);
  say(refusal);
  process.exit(1);
}

async function readStdin(): Promise<string> {
  process.stdin.setEncoding('utf8');
  let text = '';
  for await (const chunk of process.stdin) text += chunk as string;
  return text;
}

/** By hand: the schema library would add a third to the time that a start has to wait. */
function refusalOf(text: string): string | null {
  const { refuse } = JSON.parse(text) as { refuse?: { message?: unknown } | null };
  return typeof refuse?.message === 'string' ? refuse.message : null;
}

function goOn(reason: string): never {
  say(`${operation} of ${domain} goes on unchecked: ${reason}`);
  process.exit(0);
}

function say(text: string): void {
  writeSync(2, `virt-cdp: ${text}\n`);
}
