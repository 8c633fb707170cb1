import { parseDomain } from '../domain/domain.ts';
import { answerHook, type HookAnswer } from '../protection/starts/hook-answer.ts';
import { readNames, sameBy } from '../protection/starts/name-table.ts';
import { domainRecordSchema, sinceStart } from '../protection/record.ts';
import { RecordStore } from '../store/record-store.ts';
import { lastStart } from '../store/start-marker.ts';

/**
 * What the agent would answer, from the files that outlive it. A domain whose own record can't be read is refused: which of its copies is
 * current is not guessed.
 * @throws of another domain's record that can't be read, when nothing else speaks against going on.
 */
export async function answerFromRecords(storePath: string, operation: string, domainXml: string): Promise<HookAnswer> {
  const { name, uuid } = parseDomain(domainXml);
  const store = await RecordStore.open(storePath, domainRecordSchema);
  const { records, unreadable } = await store.readable();
  const own = unreadable.get(uuid);
  if (own !== undefined) {
    const message = `${name} can't ${operation === 'prepare' ? 'start' : `be ${operation}d`}: which of its copies is current is not known, and the agent does not answer; ${own.message}`;
    return { refuse: { message }, xml: null };
  }
  const started = await Promise.all(
    records.map(async (record) => sinceStart(record, await lastStart(storePath, record.uuid))),
  );
  const answer = answerHook(started, operation, domainXml, false, sameBy(await readNames(storePath)));
  for (const problem of answer.refuse === null ? unreadable.values() : []) throw problem;
  return answer;
}
