import { parseDomain } from '../domain/domain.ts';
import { answerHook, onUnreadable, type HookAnswer } from '../protection/starts/hook-answer.ts';
import { readNames, sameBy } from '../protection/starts/name-table.ts';
import { killRelays, relaysFolder } from '../protection/relays/relay-folder.ts';
import { domainRecordSchema, sinceStart } from '../protection/record.ts';
import { RecordStore } from '../store/record-store.ts';
import { lastStart } from '../store/start-marker.ts';

/**
 * What the agent would answer, from the files that outlive it. A domain whose own record can't be read is refused: which of its copies is
 * current is not guessed.
 * @throws of another domain's record that can't be read, when nothing else speaks against going on.
 */
export async function answerFromRecords(storePath: string, operation: string, domainXml: string): Promise<HookAnswer> {
  const store = await RecordStore.open(storePath, domainRecordSchema);
  const { records, unreadable } = await store.all();
  const own = unreadable.get(parseDomain(domainXml).uuid);
  if (own !== undefined) return onUnreadable(operation, domainXml, own);
  const started = await Promise.all(
    records.map(async (record) => sinceStart(record, await lastStart(storePath, record.uuid))),
  );
  const answer = answerHook(started, operation, domainXml, false, sameBy(await readNames(storePath)));
  for (const problem of answer.refuse === null ? unreadable.values() : []) throw problem;
  return answer;
}

/** What hangs in a relay of the domain's last run must not reach its mirror after what this one writes. */
export function endFormerRelays(agentSocket: string, domainXml: string): void {
  killRelays(relaysFolder(agentSocket), parseDomain(domainXml).uuid);
}
