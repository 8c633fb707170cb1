/**
 * virt-cdp-hook: what hooks/qemu runs for a protected domain, with the hook's own arguments and stdin. It asks the agent, whose
 * answer comes from memory, and if that does not answer the records on disk; never libvirt, which would deadlock. libvirt
 * waits for it with the domain locked: whatever happens, it ends by the deadline in VIRT_CDP_HOOK_DEADLINE_MS. stdout is
 * the XML for restore and migrate; empty, it leaves the XML as it is. What it decided is its exit code.
 */
import { writeSync } from 'node:fs';
import { defaultSocketPath, send } from '../control/transport.ts';
import { CdpError, errorText } from '../errors.ts';
import type { HookAnswer } from '../protection/starts/hook-answer.ts';

/** For hooks/qemu. A node that ends by itself, for whatever reason, says none of these. */
const exit = { goOn: 0, refused: 64 } as const;

const usualDeadlineMs = 1000;

const socketPath = process.env['VIRT_CDP_SOCKET'] ?? defaultSocketPath;
const storePath = process.env['VIRT_CDP_STORE'] ?? '/var/lib/virt-cdp';
const deadlineMs = Number(process.env['VIRT_CDP_HOOK_DEADLINE_MS']) || usualDeadlineMs;
/** The rest of the deadline is for the records on disk. */
const agentDeadlineMs = Math.ceil(deadlineMs / 2);

const [domain = '', operation = '', subOperation = '', extra = ''] = process.argv.slice(2);

setTimeout(() => undecided(`no answer within ${deadlineMs} ms`), deadlineMs);
process.on('uncaughtException', (error) => undecided(errorText(error)));
process.on('unhandledRejection', (error) => undecided(errorText(error)));
void main();

async function main(): Promise<void> {
  const domainXml = await readStdin();
  const answer = await agentsAnswer(domainXml).catch((error: unknown) => recordsAnswer(domainXml, error));
  if (answer.refuse !== null) {
    say(answer.refuse.message);
    process.exit(exit.refused);
  }
  if (answer.xml !== null) process.stdout.write(answer.xml, () => process.exit(exit.goOn));
  else process.exit(exit.goOn);
}

async function agentsAnswer(domainXml: string): Promise<HookAnswer> {
  const answer = await send({
    socketPath,
    method: 'POST',
    path: `/v1/hook/${encodeURIComponent(operation)}`,
    body: { subOperation, extra, domainXml },
    deadlineMs: agentDeadlineMs,
  });
  if (answer.status !== 200) throw new CdpError({ code: 'bad-answer', message: answer.text.trim() });
  return JSON.parse(answer.text) as HookAnswer;
}

/** Loaded only when it is needed: the schemas would add a third to the time that every start has to wait. */
async function recordsAnswer(domainXml: string, why: unknown): Promise<HookAnswer> {
  const { answerFromRecords, endFormerRelays } = await import('./from-records.ts');
  if (operation === 'prepare') endFormerRelays(socketPath, domainXml);
  const answer = await answerFromRecords(storePath, operation, domainXml);
  if (answer.refuse === null)
    say(`the agent does not answer (${errorText(why)}): ${operation} of ${domain} goes on by its records`);
  return answer;
}

async function readStdin(): Promise<string> {
  process.stdin.setEncoding('utf8');
  let text = '';
  for await (const chunk of process.stdin) text += chunk as string;
  return text;
}

/** Not by an exit, which waits for threads that a store keeps. */
function undecided(reason: string): void {
  say(reason);
  process.kill(process.pid, 'SIGKILL');
}

function say(text: string): void {
  writeSync(2, `virt-cdp: ${text}\n`);
}
