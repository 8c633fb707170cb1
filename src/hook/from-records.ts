import { answerHook, type HookAnswer } from '../protection/starts/hook-answer.ts';
import { domainRecordSchema, sinceStart } from '../protection/record.ts';
import { RecordStore } from '../store/record-store.ts';
import { lastStart } from '../store/start-marker.ts';

/** What the agent would answer, from the files that outlive it. */
export async function answerFromRecords(storePath: string, operation: string, domainXml: string): Promise<HookAnswer> {
  const store = await RecordStore.open(storePath, domainRecordSchema);
  const records = await Promise.all(
    (await store.all()).map(async (record) => sinceStart(record, await lastStart(storePath, record.uuid))),
  );
  return answerHook(records, operation, domainXml, false);
}
